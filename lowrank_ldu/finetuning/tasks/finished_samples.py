"""Generate images in training and when it is over, and score them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from lowrank_ldu.finetuning.processes import is_first
from lowrank_ldu.finetuning.tasks.diffusion_samples import SampleCallback, Sampler, save_images
from lowrank_ldu.finetuning.tasks.image_scores import ImageScores

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    import torch
    from torch import nn

    from lowrank_ldu.finetuning.tasks.added_tokens import AddedTokens
    from lowrank_ldu.finetuning.tasks.prompted_images import PromptedImage
    from lowrank_ldu.finetuning.tasks.text_to_image_options import TextToImageOptions

_FOLDER = "samples"


class Samples:
    """Generate images in training and when it is over, and score the latter.

    Parameters
    ----------
    pipeline : diffusers.StableDiffusionPipeline
    part : {"unet", "text_encoder"}
        Of the pipeline, which is trained.
    tokens : AddedTokens, optional
        Whose embeddings are trained.
    options : TextToImageOptions
    seed : int
    references : sequence of PromptedImage
        With which images are compared.
    device : torch.device

    Raises
    ------
    OptionError
        There is no such model that scores.
    """

    def __init__(
        self,
        pipeline: Any,
        part: str,
        tokens: AddedTokens | None,
        options: TextToImageOptions,
        *,
        seed: int,
        references: Sequence[PromptedImage],
        device: torch.device,
    ) -> None:
        size, steps, scale = options.resolution, options.inference_steps, options.guidance_scale
        prompts = options.validation_prompts or [references[0].prompt]
        self._sampler = Sampler(pipeline, part, prompts, size, steps, scale, seed)
        self._tokens = tokens
        self._number = options.images_per_prompt
        self._every = options.sample_steps
        dino, clip = (options.dino_model, options.clip_model) if self._number else ("", "")
        self._scores = [ImageScores("dino", dino)] if dino else []
        self._scores += [ImageScores("clip", clip)] if clip else []
        self._references = references
        self._device = device
        self._folder: Path | None = None

    @property
    def evaluations(self) -> dict[str, Callable[[nn.Module], dict[str, float]]]:
        """Return what is done with the finished model; see `LoadedTask`."""
        return {"samples": self.finish} if self._number or self._tokens is not None else {}

    def load(self) -> None:
        """Load the models that score, to see that they can be; see `LoadedTask`."""
        for scores in self._scores:
            scores.load()

    def callbacks(self, folder: Path) -> list[Any]:
        """Return what generates images in training; see `LoadedTask`."""
        self._folder = folder
        return [] if self._every is None else [SampleCallback(self._sampler, folder / _FOLDER, self._every)]

    def finish(self, model: nn.Module) -> dict[str, float]:
        """Generate images by the finished model, and score them.

        The images, and embeddings of added tokens, are kept in the run's folder.
        """
        images = self._sampler.generate(model, self._number) if self._number else []
        if self._folder is not None and is_first():
            if images:
                save_images(images, self._folder / _FOLDER / "best")
            if self._tokens is not None:
                self._tokens.save(model, self._folder)
        found: dict[str, float] = {}
        for scores in self._scores:
            found |= scores(images, self._references, self._device)
        return found
