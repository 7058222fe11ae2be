"""Pre-train the small vision transformer on upright digits."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import torch
from torch import nn

from lowrank_ldu.finetuning.digits.determinism import single_threaded
from lowrank_ldu.finetuning.digits.network import build_vision_transformer

if TYPE_CHECKING:
    from lowrank_ldu.finetuning.digits.data import Images
    from lowrank_ldu.finetuning.digits.network import VisionTransformerSettings


@dataclass(frozen=True)
class PretrainingSettings:
    """Hold the settings of the pre-training.

    Attributes
    ----------
    epochs : int
        Passes over the images.
    batch_size : int
        Images in a step; the last batch of an epoch may be smaller.
    learning_rate : float
        Peak of a schedule that rises linearly from 0, and then falls linearly to 0.
    warmup_ratio : float
        Part of the steps, in [0, 1), in which it rises.
    weight_decay : float
        AdamW's decoupled decay, of matrices only.
    """

    epochs: int = 40
    batch_size: int = 64
    learning_rate: float = 1e-3
    warmup_ratio: float = 0.06
    weight_decay: float = 0.01


PRETRAINING: Final = PretrainingSettings()


@single_threaded()
def pretrain(
    images: Images,
    *,
    network: VisionTransformerSettings | None = None,
    settings: PretrainingSettings = PRETRAINING,
    seed: int = 0,
) -> nn.Module:
    """Train every weight of a new network.

    The same call gives the same weights on the same machine with the same versions: it runs on one thread.

    Parameters
    ----------
    images : Images
        Images trained on.
    network : VisionTransformerSettings, optional
        Shape of the network.
    settings : PretrainingSettings
        Budget and optimizer.
    seed : int
        Seed of the weights and of the batches' order.

    Returns
    -------
    torch.nn.Module
        The network, in training mode.
    """
    model = build_vision_transformer(network, seed=seed).requires_grad_(True).train()
    total = settings.epochs * math.ceil(len(images) / settings.batch_size)
    warmup = int(settings.warmup_ratio * total)

    def factor(step: int) -> float:
        # step counts from 0: the first step is not one of size 0, and the peak is the first step after the warm-up.
        return (step + 1) / (warmup + 1) if step < warmup else (total - step) / (total - warmup)

    matrices = [parameter for parameter in model.parameters() if parameter.ndim > 1]
    vectors = [parameter for parameter in model.parameters() if parameter.ndim <= 1]
    groups = [{"params": matrices, "weight_decay": settings.weight_decay}, {"params": vectors, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=settings.learning_rate)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
    generator = torch.Generator().manual_seed(seed)
    for _ in range(settings.epochs):
        for batch in torch.split(torch.randperm(len(images), generator=generator), settings.batch_size):
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy(model(images.pixels[batch]).logits, images.labels[batch])
            torch.autograd.backward(loss)
            optimizer.step()
            scheduler.step()
    return model


@single_threaded()
@torch.no_grad()
def accuracy(model: nn.Module, images: Images) -> float:
    """Measure the part of the images that is classified rightly.

    The model is left in evaluation mode.

    Parameters
    ----------
    model : torch.nn.Module
        Classifier whose output has ``logits`` (N, classes).
    images : Images
        Labeled images.

    Returns
    -------
    float
        In [0, 1].
    """
    model.eval()
    right = model(images.pixels).logits.argmax(dim=1) == images.labels
    return float(right.double().mean())
