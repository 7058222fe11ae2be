"""Give the base model of the recipe ``digits``: pre-trained once, and kept."""

from __future__ import annotations

import contextlib
import hashlib
from importlib.metadata import version
from typing import TYPE_CHECKING, Any, cast

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from lowrank_ldu.files import replace_file
from lowrank_ldu.finetuning.digits.data import GRAY_LEVELS, load_digits_split
from lowrank_ldu.finetuning.digits.network import VisionTransformerSettings, build_vision_transformer
from lowrank_ldu.finetuning.digits.pretraining import PRETRAINING, pretrain
from lowrank_ldu.finetuning.digits.rows import BRIGHTNESS
from lowrank_ldu.finetuning.extra import require
from lowrank_ldu.finetuning.manifest import weights_digest
from lowrank_ldu.kernels.measured import cache_folder

if TYPE_CHECKING:
    from pathlib import Path

    from torch import nn

MODEL = "digits-vit"
# Weights that are trained in another way need another file.
_FORMAT = 1
_CHECKSUM = "sha256"


def pretrained_digits_vit() -> tuple[Any, Any]:
    """Return the pre-trained network and its image processor.

    It is trained for some seconds the first time. The weights are kept in the user's cache folder, in a file that is
    written whole or not at all; one whose checksum is wrong is made again.

    Returns
    -------
    model : transformers.ViTForImageClassification
        With a head of ten digits.
    processor : transformers.BaseImageProcessor
        Makes pixels of -1 to 1 of gray images.
    """
    path = cache_folder() / f"{MODEL}-{_key()}.safetensors"
    model = _read(path)
    if model is None:
        model = pretrain(load_digits_split().pretraining)
        tensors = {name: each.contiguous() for name, each in model.state_dict().items()}
        # Without a place to keep it, it is made each time.
        with contextlib.suppress(OSError):
            path.parent.mkdir(parents=True, exist_ok=True)
            replace_file(path, save(tensors, {_CHECKSUM: weights_digest(model)}))
    return model, _processor()


def _key() -> str:
    """Return a digest of what determines the weights."""
    parts = (
        _FORMAT,
        VisionTransformerSettings(),
        PRETRAINING,
        torch.__version__,
        torch.backends.cpu.get_cpu_capability(),
        *(version(package) for package in ("transformers", "scikit-learn")),
    )
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:16]


def _read(path: Path) -> nn.Module | None:
    """Return the network of a file, or None of one that is missing or damaged."""
    model = build_vision_transformer()
    try:
        with safe_open(path, framework="pt") as file:
            checksum = (file.metadata() or {}).get(_CHECKSUM)
            model.load_state_dict({name: file.get_tensor(name) for name in file.keys()})  # noqa: SIM118  # no mapping
    except (OSError, SafetensorError, RuntimeError):
        return None
    return model if checksum == weights_digest(model) else None


def _processor() -> Any:
    side = VisionTransformerSettings().image
    transformers = require("transformers")
    # Beside it stands one that needs torchvision, by the name without an ending.
    kind = getattr(transformers, "ViTImageProcessorPil", None) or transformers.ViTImageProcessor
    return cast(
        "Any",
        kind(
            size={"height": side, "width": side},
            rescale_factor=2 / (GRAY_LEVELS * BRIGHTNESS),
            image_mean=[1.0],
            image_std=[1.0],
        ),
    )
