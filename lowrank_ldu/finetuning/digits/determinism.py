"""Compute in a way that does not depend on the number of cores."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from collections.abc import Iterator


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
