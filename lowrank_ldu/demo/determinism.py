"""Make runs repeatable.

Initial weights by seed, and arithmetic that does not depend on the number of cores.
"""

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
        torch.manual_seed(seed)
        yield


@contextmanager
def single_threaded() -> Iterator[None]:
    """Run a block, or a decorated function, on one CPU thread.

    The thread count is restored afterwards.

    Sums are rounded differently by different thread counts, which 150 steps turn into a point or two of accuracy. At
    this size a second thread gains a third of the time on an idle machine and loses much more on a shared one.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
