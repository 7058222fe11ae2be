"""Time several steps that take turns.

What else the machine does then falls on all of them.
"""

from __future__ import annotations

import random
import time
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch

if TYPE_CHECKING:
    from collections.abc import Callable

LEAST_ROUNDS, MOST_ROUNDS = 3, 200
# Larger than the L2 caches of the GPUs there are.
_CACHE_BYTES = 256 * 2**20


class Times(NamedTuple):
    """Hold percentiles in seconds and the number of rounds."""

    p20: float
    p50: float
    p80: float
    rounds: int


def measure(
    steps: dict[str, Callable[[], None]],
    device: torch.device,
    seconds: float,
    *,
    seed: int = 0,
    progress: Callable[[float], None] = lambda _: None,
) -> dict[str, Times]:
    """Time steps in turns.

    Each round has an order of its own, and each timing follows upon a call of the same step that is not timed: what the
    step before left in the caches does not fall on one of them alone.

    Parameters
    ----------
    steps : dict of str to callable
    device : torch.device
        On a GPU each step starts with an empty L2 cache, and is timed by the device's own clock.
    seconds : float
        For all of it, as far as `LEAST_ROUNDS` allow.
    seed : int
        Of the orders.
    progress : callable
        Told the share of the time that is over.
    """
    timer = _on_gpu(device) if device.type == "cuda" else _on_cpu
    order, draw = list(steps), random.Random(seed)  # noqa: S311
    taken: dict[str, list[float]] = {name: [] for name in steps}
    start = time.perf_counter()
    for rounds in range(MOST_ROUNDS):
        spent = time.perf_counter() - start
        progress(min(1.0, max(rounds / MOST_ROUNDS, spent / seconds if seconds > 0 else 1.0)))
        # One more round takes as long as the ones before.
        if rounds >= LEAST_ROUNDS and spent + spent / rounds > seconds:
            break
        draw.shuffle(order)
        for name in order:
            steps[name]()
            taken[name].append(timer(steps[name]))
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
