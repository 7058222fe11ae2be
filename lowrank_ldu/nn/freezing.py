"""Which parameters train: put back when a change of the model fails half-way, and made so that they can."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import nn


@contextmanager
def restore_trainable_on_error(model: nn.Module) -> Iterator[None]:
    """Put back every parameter's requires_grad if the block raises.

    Making a layer freezes its base at once; if a later layer cannot be made, the model is to be as it was.
    """
    before = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    try:
        yield
    except BaseException:
        for parameter, was in before:
            parameter.requires_grad = was
        raise


@contextmanager
def outside_inference_mode() -> Iterator[None]:
    """Leave inference mode, whose tensors cannot be trained, and nothing else."""
    grad = torch.is_grad_enabled()
    with torch.inference_mode(mode=False), torch.set_grad_enabled(grad):
        yield
