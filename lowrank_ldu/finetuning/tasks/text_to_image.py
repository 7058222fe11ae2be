"""Load tasks that teach a concept to a model of text to images."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import torch

from lowrank_ldu.errors import OptionError
from lowrank_ldu.finetuning.extra import require
from lowrank_ldu.finetuning.manifest import weights_digest
from lowrank_ldu.finetuning.methods import get_method
from lowrank_ldu.finetuning.methods.options import check_ranges, converted, field_defaults
from lowrank_ldu.finetuning.processes import is_first
from lowrank_ldu.finetuning.tasks.diffusion_loss import DiffusionLoss
from lowrank_ldu.finetuning.tasks.diffusion_model import load_pipeline
from lowrank_ldu.finetuning.tasks.encoded_images import Encoder, PairsOfClasses, RepeatedDraws, collate
from lowrank_ldu.finetuning.tasks.image_scores import ClipScores, DinoScores
from lowrank_ldu.finetuning.tasks.prompted_images import PromptedImage, images_digest, read_images
from lowrank_ldu.finetuning.tasks.task import LoadedTask

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from torch import nn

    from lowrank_ldu.finetuning.configuration import RunConfig

Dtype = Literal["float32", "float16", "bfloat16"]
_LEAST = {
    "resolution": 1,
    "validation_images": 0,
    "validation_draws": 1,
    "sample_steps": 1,
    "images_per_prompt": 0,
    "inference_steps": 1,
}
_NOT_NEGATIVE = ("prior_loss_weight", "guidance_scale")


@dataclass(frozen=True)
class TextToImageOptions:
    """Hold the options of these tasks, and their defaults.

    Attributes
    ----------
    resolution : int
        Pixels of the square that is cut from the middle of each image.
    instance_prompt : str, optional
        Of images that have no text of their own, such as "a photo of sks dog".
    validation_images : int
        Images that are held out for the validation loss, drawn at random and the same for every seed. With 0 the
        training images validate, too.
    validation_draws : int
        Fixed draws of noise and timestep for each of them.
    with_prior_preservation : bool
        Whether images of the class are trained beside those of the concept.
    class_data, class_prompt : str, optional
        Those images, as the data are given, and their prompt.
    prior_loss_weight : float
        Of their loss.
    vae : str, optional
        An autoencoder instead of the model's own.
    base_dtype : str
        Of the frozen numbers.
    validation_prompts : list of str, optional
        Of images that are generated; the instance prompt if not given.
    sample_steps : int, optional
        Steps between two times in training when one image of each prompt is generated.
    images_per_prompt : int
        Images of each prompt that the finished model generates, and that are scored.
    inference_steps : int
    guidance_scale : float
    dino_model, clip_model : str
        By which those are scored; empty for none.
    """

    resolution: int = 512
    instance_prompt: str | None = None
    validation_images: int = 0
    validation_draws: int = 8
    with_prior_preservation: bool = False
    class_data: str | None = None
    class_prompt: str | None = None
    prior_loss_weight: float = 1.0
    vae: str | None = None
    base_dtype: Dtype = "float32"
    validation_prompts: list[str] | None = None
    sample_steps: int | None = None
    images_per_prompt: int = 4
    inference_steps: int = 50
    guidance_scale: float = 7.5
    dino_model: str = "facebook/dino-vits16"
    clip_model: str = "openai/clip-vit-base-patch32"


class TextToImage:
    """Offer DreamBooth: a concept that a few images show (arXiv 2208.12242)."""

    TASKS: Mapping[str, str] = {"concept": "what a few images show, by a prompt that names it"}
    OPTIONS: Mapping[str, Any] = field_defaults(TextToImageOptions, ())

    def checked_options(self, given: Mapping[str, Any]) -> dict[str, Any]:
        """Check its own options, and fill in the defaults."""
        checked = {**self.OPTIONS, **converted(TextToImageOptions, given)}
        check_ranges(checked, _LEAST, {})
        for name in _NOT_NEGATIVE:
            if not 0 <= checked[name] < float("inf"):
                raise OptionError(f"{name} is {checked[name]}; accepted: a finite number from 0 on")
        if checked["validation_prompts"] == []:
            raise OptionError("validation_prompts is []; accepted: prompts, or to leave it out")
        of_class = [name for name in ("class_data", "class_prompt") if checked[name] is not None]
        if checked["with_prior_preservation"] and checked["class_data"] is None:
            raise OptionError("with_prior_preservation is True without class_data; accepted: a folder of its images")
        if of_class and not checked["with_prior_preservation"]:
            raise OptionError(f"{of_class[0]} is given; accepted: only with with_prior_preservation = true")
        return checked

    def load(self, config: RunConfig) -> LoadedTask:
        """Load the model and the data of a run."""
        options = TextToImageOptions(**config.task_options)
        if options.base_dtype != "float32" and not get_method(config.method).adapts_layers:
            raise OptionError(
                f"base_dtype is {options.base_dtype!r} with method {config.method!r}, which trains the numbers of the "
                "base; accepted: float32"
            )
        if config.data is None:
            raise OptionError("data is not given; accepted: --data with a folder of images or an id on the hub")
        names = {"data_name": "data", "prompt_name": "instance_prompt"}
        images = read_images(config.data, options.instance_prompt, **names)
        classes = _class_images(options)
        pipeline = load_pipeline(config.model, options.vae)
        unet, device = pipeline.unet, require("accelerate").PartialState().device
        encoder = Encoder(pipeline, options.resolution, device)
        train, validation = _parts(images, options)
        encoded, held_out, of_class = (encoder.encode(each) for each in (train, validation, classes))
        digests = [weights_digest(part) for part in (pipeline.vae, pipeline.text_encoder)]
        for part in (unet, pipeline.vae, pipeline.text_encoder):
            # Not diffusers' own method, which warns of each cast.
            torch.nn.Module.to(part, getattr(torch, options.base_dtype)).requires_grad_(requires_grad=False)
        samples = _Samples(pipeline, options, config.seed, images, device)
        return LoadedTask(
            model=unet.requires_grad_(),
            head=[] if config.modules_to_save is None else config.modules_to_save,
            task_type=None,
            train=PairsOfClasses(encoded, of_class, options.prior_loss_weight) if classes else RepeatedDraws(encoded),
            validation=RepeatedDraws(held_out or encoded, options.validation_draws),
            collator=collate,
            metric="loss",
            greater_is_better=False,
            loss=DiffusionLoss.of(pipeline),
            data_digest="-".join([images_digest([*images, *classes]), *digests]),
            evaluations={"samples": samples.scores} if options.images_per_prompt else {},
            callbacks=samples.callbacks,
        )


def _class_images(options: TextToImageOptions) -> list[PromptedImage]:
    if options.class_data is None:
        return []
    names = {"data_name": "class_data", "prompt_name": "class_prompt"}
    return read_images(options.class_data, options.class_prompt, **names)


def _parts(
    images: Sequence[PromptedImage], options: TextToImageOptions
) -> tuple[list[PromptedImage], list[PromptedImage]]:
    """Return the images to train on, and those that are held out."""
    held_out = options.validation_images
    if held_out >= len(images):
        raise OptionError(f"validation_images is {held_out} of {len(images)}; accepted: 0 to {len(images) - 1}")
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0)).tolist()
    chosen = set(order[:held_out])
    return (
        [each for place, each in enumerate(images) if place not in chosen],
        [each for place, each in enumerate(images) if place in chosen],
    )


class _Samples:
    """Generate images in training and when it is over, and score the latter."""

    def __init__(
        self,
        pipeline: Any,
        options: TextToImageOptions,
        seed: int,
        references: Sequence[PromptedImage],
        device: torch.device,
    ) -> None:
        from lowrank_ldu.finetuning.tasks.diffusion_samples import Sampler  # noqa: PLC0415  # slow to import

        prompts = options.validation_prompts or list(dict.fromkeys(each.prompt for each in references))[:1]
        size, steps, scale = options.resolution, options.inference_steps, options.guidance_scale
        self._sampler = Sampler(pipeline, prompts, size, steps, scale, seed)
        self._options = options
        # Loaded before training: one that is not there is known then.
        given = (
            ((DinoScores, options.dino_model), (ClipScores, options.clip_model)) if options.images_per_prompt else ()
        )
        self._scores = [kind(model) for kind, model in given if model]
        self._references = references
        self._device = device
        self._folder: Path | None = None

    def callbacks(self, folder: Path) -> list[Any]:
        """Return what generates images in training; see `LoadedTask`."""
        from lowrank_ldu.finetuning.tasks.diffusion_samples import FOLDER, SampleCallback  # noqa: PLC0415

        self._folder = folder / FOLDER
        every = self._options.sample_steps
        return [] if every is None else [SampleCallback(self._sampler, self._folder, every)]

    def scores(self, model: nn.Module) -> dict[str, float]:
        """Generate images by the finished model, keep and score them."""
        from lowrank_ldu.finetuning.tasks.diffusion_samples import save_images  # noqa: PLC0415

        images = self._sampler.generate(model, self._options.images_per_prompt)
        if self._folder is not None and is_first():
            save_images(images, self._folder / "best")
        found: dict[str, float] = {}
        for scores in self._scores:
            found |= scores(images, self._references, self._device)
        return found
