"""Time several steps that take turns.

What else the machine does then falls on all of them.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch

if TYPE_CHECKING:
    from collections.abc import Callable

LEAST_ROUNDS, MOST_ROUNDS = 5, 200
_WARM_UP = 2
# Larger than the L2 caches of the GPUs there are.
_CACHE_BYTES = 256 * 2**20


class Times(NamedTuple):
    """Hold percentiles in seconds and the number of rounds."""

    p20: float
    p50: float
    p80: float
    rounds: int


def measure(steps: dict[str, Callable[[], None]], device: torch.device, seconds: float) -> dict[str, Times]:
    """Time steps in turns.

    Parameters
    ----------
    steps : dict of str to callable
    device : torch.device
        On a GPU each step starts with an empty L2 cache, and is timed by the device's own clock.
    seconds : float
        For all of it, as far as `LEAST_ROUNDS` allow.
    """
    timer = _on_gpu(device) if device.type == "cuda" else _on_cpu
    for step in steps.values():
        for _ in range(_WARM_UP):
            step()
    once = sum(timer(step) for step in steps.values())
    rounds = int(min(MOST_ROUNDS, max(LEAST_ROUNDS, seconds / max(once, 1e-9))))
    taken: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(rounds):
        for name, step in steps.items():
            taken[name].append(timer(step))
    return {name: _times(values) for name, values in taken.items()}


def _times(values: list[float]) -> Times:
    p20, p50, p80 = (float(value) for value in np.percentile(values, (20, 50, 80)))
    return Times(p20, p50, p80, len(values))


def _on_cpu(step: Callable[[], None]) -> float:
    start = time.perf_counter()
    step()
    return time.perf_counter() - start


def _on_gpu(device: torch.device) -> Callable[[Callable[[], None]], float]:
    flushed = torch.empty(_CACHE_BYTES, dtype=torch.int8, device=device)

    def timer(step: Callable[[], None]) -> float:
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
        flushed.zero_()
        start.record()
        step()
        end.record()
        torch.cuda.synchronize(device)
        return float(start.elapsed_time(end)) / 1e3

    return timer
