"""Generate images by the model that is trained, and keep them."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from transformers import TrainerCallback

from lowrank_ldu.files import whole_folder
from lowrank_ldu.finetuning.tasks.prompted_images import PromptedImage

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from torch import nn

_LONGEST_NAME = 60


@dataclass
class Sampler:
    """Generate images of prompts, the same whenever the model is the same.

    Nothing is drawn from torch's global generators. Modes of modules, and devices of the frozen parts, are as before
    afterwards.

    Attributes
    ----------
    pipeline : diffusers.StableDiffusionPipeline
    part : {"unet", "text_encoder"}
        Which the trained model takes the place of.
    prompts : sequence of str
    size : int
        Pixels of a side.
    steps : int
        Of the pipeline's scheduler.
    guidance_scale : float
    seed : int
        Image i of every prompt is generated from seed + i.
    """

    pipeline: Any
    part: str
    prompts: Sequence[str]
    size: int
    steps: int
    guidance_scale: float
    seed: int

    def generate(self, model: nn.Module, number: int) -> list[PromptedImage]:
        """Generate images of each prompt.

        Parameters
        ----------
        model : nn.Module
            The part, or PEFT's model around it.
        number : int
            Of images of each prompt.

        Returns
        -------
        list of PromptedImage
        """
        pipeline = self.pipeline
        modes = [(module, module.training) for module in model.modules()]
        plain: Any = model.get_base_model() if hasattr(model, "get_base_model") else model  # type: ignore[operator]
        setattr(pipeline, self.part, plain.eval())
        frozen = [
            (part, part.device) for part in (pipeline.vae, pipeline.text_encoder, pipeline.unet) if part is not plain
        ]
        try:
            for part, _ in frozen:
                part.to(plain.device)
            return [PromptedImage(image, prompt) for prompt in self.prompts for image in self._images(prompt, number)]
        finally:
            for part, device in frozen:
                part.to(device)
            for module, mode in modes:
                module.training = mode

    def _images(self, prompt: str, number: int) -> Iterator[Any]:
        # One by one: a batch of another size would give slightly other images, and take more memory.
        for place in range(number):
            yield self.pipeline(
                prompt,
                height=self.size,
                width=self.size,
                num_inference_steps=self.steps,
                guidance_scale=self.guidance_scale,
                generator=torch.Generator().manual_seed(self.seed + place),
            ).images[0]


def save_images(images: Sequence[PromptedImage], folder: Path) -> None:
    """Write images as PNG, all of them or none.

    Parameters
    ----------
    images : sequence of PromptedImage
    folder : pathlib.Path
        Made with its parents; files in it are replaced. Names are a number and the prompt.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    with whole_folder(folder, overwrite=True) as path:
        for place, (image, prompt) in enumerate(images):
            words = re.sub(r"[^\w]+", "-", prompt).strip("-")[:_LONGEST_NAME]
            image.save(path / f"{place:03}-{words}.png")


@dataclass
class SampleCallback(TrainerCallback):
    """Generate images during training.

    Attributes
    ----------
    sampler : Sampler
    folder : pathlib.Path
        Gets a folder for each time, step-N.
    every : int
        Steps between two times.
    """

    sampler: Sampler
    folder: Path
    every: int

    def on_step_end(self, args: Any, state: Any, control: Any, model: Any = None, **_: Any) -> None:  # noqa: ARG002
        """Generate an image of each prompt, in the first process."""
        if state.is_world_process_zero and state.global_step % self.every == 0:
            save_images(self.sampler.generate(model, 1), self.folder / f"step-{state.global_step}")
