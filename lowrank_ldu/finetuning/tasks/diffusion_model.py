"""Load a pipeline of Stable Diffusion by diffusers."""

from __future__ import annotations

import warnings
from contextlib import contextmanager
from types import MethodType
from typing import TYPE_CHECKING, Any

from lowrank_ldu.errors import OptionError
from lowrank_ldu.finetuning.extra import require
from lowrank_ldu.finetuning.tasks.prompted_images import EXTRA

if TYPE_CHECKING:
    from collections.abc import Iterator

_PREDICTIONS = ("epsilon", "v_prediction")


def load_pipeline(model: str, vae: str | None) -> Any:
    """Load a pipeline of Stable Diffusion, in single precision.

    Parameters
    ----------
    model : str
        A folder, or an id on the hub.
    vae : str, optional
        Of an autoencoder that takes the place of the pipeline's own.

    Returns
    -------
    diffusers.StableDiffusionPipeline
        Without the safety checker, which looks at finished images alone.

    Raises
    ------
    OptionError
        It cannot be loaded, or its UNet takes more than latents, timesteps and the embeddings of a prompt.
    """
    diffusers = require("diffusers", EXTRA)
    none = {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}
    what = f"vae is {vae!r}"
    try:
        with quiet_diffusers():
            others = {} if vae is None else {"vae": diffusers.AutoencoderKL.from_pretrained(vae)}
            what = f"model is {model!r}"
            pipeline = diffusers.StableDiffusionPipeline.from_pretrained(model, **none, **others)
    except (OSError, ValueError, TypeError, AttributeError) as error:
        reason = " ".join(str(error).split())
        raise OptionError(f"{what}, which diffusers cannot load: {reason}") from error
    _check(pipeline, model)
    pipeline.set_progress_bar_config(disable=True)
    # The Trainer calls it by the names that transformers' models have for it.
    for name in ("activation_checkpointing_enable", "gradient_checkpointing_enable"):
        setattr(pipeline.unet, name, MethodType(_checkpoint_gradients, pipeline.unet))
    return pipeline


def _check(pipeline: Any, model: str) -> None:
    """Refuse a pipeline whose loss is another than `DiffusionLoss`."""
    unet, kind = pipeline.unet.config, pipeline.scheduler.config.prediction_type
    others = [name for name in ("addition_embed_type", "class_embed_type", "encoder_hid_dim_type") if unet.get(name)]
    channels = pipeline.vae.config.latent_channels
    if others or unet.in_channels != channels or unet.out_channels != channels:
        reason = f"{others[0]} is {unet[others[0]]!r}" if others else f"in_channels is {unet.in_channels}"
        raise OptionError(f"model is {model!r}, of whose UNet {reason}; accepted: Stable Diffusion 1.x or 2.x")
    if kind not in _PREDICTIONS:
        raise OptionError(f"model is {model!r}, which predicts {kind!r}; accepted: {' or '.join(_PREDICTIONS)}")


def _checkpoint_gradients(unet: Any, **_: Any) -> None:
    unet.enable_gradient_checkpointing()


@contextmanager
def quiet_diffusers() -> Iterator[None]:
    """Show no bars of loading, and nothing of parts that are left out on purpose."""
    logging = require("diffusers.utils.logging", EXTRA)
    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            # What diffusers asks the hub for, which no user can change.
            warnings.filterwarnings("ignore", "The `local_dir_use_symlinks` argument is deprecated")
            yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()
