"""Make what is drawn at random repeatable."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from collections.abc import Iterator


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Seed PyTorch's global CPU generator for a block.

    The generator is put back afterwards.

    Transformers and PEFT draw their initial weights from the global generator and take no other.

    Parameters
    ----------
    seed : int
        Seed of the block.
    """
    with torch.random.fork_rng(devices=[]):
        # Not torch.manual_seed, which would seed accelerators, too, whose generators are not put back.
        torch.default_generator.manual_seed(seed)
        yield
