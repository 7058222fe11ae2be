"""Build the small vision transformer of the demo."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

from lowrank_ldu.finetuning.extra import require
from lowrank_ldu.finetuning.seeding import seeded

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True)
class VisionTransformerSettings:
    """Hold the shape of the network.

    The default has 302,506 weights and reads 8 x 8 images as 16 patches.

    Attributes
    ----------
    width : int
        Size of the hidden state, a multiple of ``heads``.
    layers, heads : int
        Transformer blocks, and attention heads in each.
    feed_forward : int
        Width inside a block's perceptron.
    image, patch : int
        Side of the square image and of its square patches, in pixels.
    channels : int
        Channels of a pixel.
    classes : int
        Outputs of the classification head.
    """

    width: int = 96
    layers: int = 4
    heads: int = 4
    feed_forward: int = 192
    image: int = 8
    patch: int = 2
    channels: int = 1
    classes: int = 10


def build_vision_transformer(settings: VisionTransformerSettings | None = None, *, seed: int = 0) -> nn.Module:
    """Build a vision transformer with random weights.

    Parameters
    ----------
    settings : VisionTransformerSettings, optional
        Shape of the network.
    seed : int
        Seed of the weights. The global generator is left as it was.

    Returns
    -------
    torch.nn.Module
        float32 network on the CPU; called with pixels (N, channels, image, image) it returns an object whose ``logits``
        are (N, classes). Its head is the submodule ``classifier``.

    Raises
    ------
    ImportError
        transformers is not installed.
    """
    settings = settings or VisionTransformerSettings()
    transformers = require("transformers")
    config = transformers.ViTConfig(
        hidden_size=settings.width,
        num_hidden_layers=settings.layers,
        num_attention_heads=settings.heads,
        intermediate_size=settings.feed_forward,
        image_size=settings.image,
        patch_size=settings.patch,
        num_channels=settings.channels,
        num_labels=settings.classes,
    )
    with seeded(seed):
        return cast("nn.Module", transformers.ViTForImageClassification(config))
