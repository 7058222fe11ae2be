"""Load tasks that teach a concept to a model of text to images."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from lowrank_ldu.errors import OptionError
from lowrank_ldu.finetuning.extra import require
from lowrank_ldu.finetuning.manifest import weights_digest
from lowrank_ldu.finetuning.methods import get_method
from lowrank_ldu.finetuning.methods.options import check_ranges, converted, field_defaults
from lowrank_ldu.finetuning.tasks.added_tokens import AddedTokens, add_tokens
from lowrank_ldu.finetuning.tasks.diffusion_loss import DiffusionLoss
from lowrank_ldu.finetuning.tasks.diffusion_model import load_pipeline
from lowrank_ldu.finetuning.tasks.encoded_images import Encoder, PairsOfClasses, RepeatedDraws, collate
from lowrank_ldu.finetuning.tasks.prompted_images import PromptedImage, images_digest, read_images
from lowrank_ldu.finetuning.tasks.task import LoadedTask
from lowrank_ldu.finetuning.tasks.text_to_image_options import LEAST, NOT_NEGATIVE, TextToImageOptions

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from lowrank_ldu.finetuning.configuration import RunConfig
    from lowrank_ldu.finetuning.tasks.meta_model import MetaModel


class TextToImage:
    """Offer DreamBooth and Textual Inversion: a concept that a few images show (arXiv 2208.12242, 2208.01618)."""

    TASKS: Mapping[str, str] = {
        "concept": "the UNet learns what a few images show",
        "token": "the embedding of a new token does, and nothing else",
    }
    OPTIONS: Mapping[str, Any] = field_defaults(TextToImageOptions, ())

    def checked_options(self, given: Mapping[str, Any]) -> dict[str, Any]:
        """Check its own options, and fill in the defaults."""
        checked = {**self.OPTIONS, **converted(TextToImageOptions, given)}
        check_ranges(checked, LEAST, {})
        for name in NOT_NEGATIVE:
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

    def meta_model(self, config: RunConfig, *, download: bool) -> MetaModel | None:  # noqa: ARG002
        """Return None: pipelines are looked at when they are loaded; see `Kind.meta_model`."""
        return None

    def load(self, config: RunConfig) -> LoadedTask:
        """Load the model and the data of a run."""
        from lowrank_ldu.finetuning.tasks.finished_samples import Samples  # noqa: PLC0415  # slow to import

        options = TextToImageOptions(**config.task_options)
        _check(config, options)
        images = read_images(str(config.data), options.instance_prompt, data_name="data", prompt_name="instance_prompt")
        classes = _class_images(options)
        pipeline = load_pipeline(config.model, options.vae)
        tokens = None if config.task == "concept" else _add_tokens(pipeline, options, images)
        part = "unet" if tokens is None else "text_encoder"
        device = require("accelerate").PartialState().device
        encoder = Encoder(pipeline, options.resolution, device, tokens=tokens is not None)
        train, validation = _parts(images, options)
        encoded, held_out, of_class = (encoder.encode(each) for each in (train, validation, classes))
        parts = {name: getattr(pipeline, name) for name in ("unet", "vae", "text_encoder")}
        digests = [weights_digest(module) for name, module in parts.items() if name != part]
        for module in parts.values():
            # Not diffusers' own method, which warns of each cast.
            torch.nn.Module.to(module, getattr(torch, options.base_dtype)).requires_grad_(requires_grad=False)
        if tokens is not None:
            parts[part].get_submodule(tokens.module).float()
        samples = Samples(pipeline, part, tokens, options, seed=config.seed, references=images, device=device)
        return LoadedTask(
            model=parts[part].requires_grad_(),
            head=[*([] if tokens is None else [tokens.module]), *(config.modules_to_save or [])],
            task_type=None,
            train=PairsOfClasses(encoded, of_class, options.prior_loss_weight) if classes else RepeatedDraws(encoded),
            validation=RepeatedDraws(held_out or encoded, options.validation_draws),
            collator=collate,
            metric="loss",
            greater_is_better=False,
            loss=DiffusionLoss.of(pipeline, of_text_encoder=tokens is not None),
            data_digest="-".join([images_digest([*images, *classes]), *digests]),
            evaluations=samples.evaluations,
            load_evaluations=samples.load,
            callbacks=samples.callbacks,
            obstacle_to_sharding="images are generated by one process while it trains",
        )


def _check(config: RunConfig, options: TextToImageOptions) -> None:
    """Refuse options that do not go with the task or the method."""
    if config.data is None:
        raise OptionError("data is not given; accepted: --data with a folder of images or an id on the hub")
    of_token = {name: getattr(options, name) for name in ("placeholder_token", "initializer_token")}
    whole = bool(config.modules_to_save) or config.method_options.get("bias", "none") != "none"
    if config.task == "token":
        if config.method != "head":
            raise OptionError(f"method is {config.method!r} with task 'token', which trains its head; accepted: head")
        missing = next((name for name, value in of_token.items() if not value), None)
        if missing is not None:
            raise OptionError(f"{missing} is not given; accepted: a token, such as <toy> that starts as toy")
    else:
        default = {**dict.fromkeys(of_token), "num_vectors": 1}
        given = next((name for name, value in default.items() if getattr(options, name) != value), None)
        if given is not None:
            raise OptionError(f"{given} is given with task {config.task!r}; accepted: task token, of textual-inversion")
        whole = whole or not get_method(config.method).adapts_layers
    if whole and options.base_dtype != "float32":
        raise OptionError(
            f"base_dtype is {options.base_dtype!r} with method {config.method!r}, modules_to_save or bias, which train "
            "numbers of the base; accepted: float32"
        )


def _add_tokens(pipeline: Any, options: TextToImageOptions, images: Sequence[PromptedImage]) -> AddedTokens:
    token = str(options.placeholder_token)
    without = next((prompt for _, prompt in images if token not in prompt), None)
    if without is not None:
        raise OptionError(f"the prompt {without!r} is without placeholder_token, {token}; accepted: prompts with it")
    return add_tokens(pipeline, token, str(options.initializer_token), options.num_vectors)


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
