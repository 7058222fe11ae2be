"""Share out a budget of trained numbers over layers by energy."""

from __future__ import annotations

import heapq
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence


def allocate(curves: Mapping[str, Sequence[float]], cost: Callable[[int], int], budget: int) -> dict[str, int]:
    """Return a rank for each layer under one budget.

    Each layer gets the first step of its curve, and then, again and again, the layer whose next steps add most energy
    for each number gets them. Steps are taken together where the later ones add more for each number than the first:
    that is the greedy solution on the concave hulls of the curves, within one step of the best.

    Parameters
    ----------
    curves : mapping of str to sequence of float
        Energy that a layer holds at rank 1, 2, ..., in one unit for all layers.
    cost : callable
        From a rank to trained numbers.
    budget : int
        Trained numbers of all layers together.

    Returns
    -------
    dict of str to int

    Raises
    ------
    ValueError
        The budget does not give rank 1 to every layer.

    Examples
    --------
    >>> allocate({"a": [4.0, 5.0, 5.5], "b": [1.0, 1.1, 1.2]}, lambda rank: rank, 4)
    {'a': 3, 'b': 1}
    """
    least = len(curves) * cost(1)
    if budget < least:
        raise ValueError(f"budget is {budget}; accepted: at least {least}, rank 1 for each of {len(curves)} layers")
    ranks = dict.fromkeys(curves, 1)
    left = budget - least
    queue: list[tuple[float, int, str]] = []

    def enqueue(name: str) -> None:
        curve, rank = curves[name], ranks[name]
        steps = [
            ((curve[later - 1] - curve[rank - 1]) / (cost(later) - cost(rank)), -later)
            for later in range(rank + 1, len(curve) + 1)
            if cost(later) - cost(rank) <= left
        ]
        if steps:
            gain, later = max(steps)
            heapq.heappush(queue, (-gain, -later, name))

    for name in curves:
        enqueue(name)
    while queue:
        _, later, name = heapq.heappop(queue)
        price = cost(later) - cost(ranks[name])
        if price <= left:
            left -= price
            ranks[name] = later
        enqueue(name)
    return ranks


def largest_useful_rank(cost: Callable[[int], int], budget: int, layers: int, limit: int) -> int:
    """Return the rank up to which a layer's energy is looked at.

    It is four times the rank of an even share, at least 16, or less where the budget or the matrix ends before it.
    """
    room = budget - (layers - 1) * cost(1)
    even = _rank_for(cost, budget // max(layers, 1), limit)
    return max(1, min(max(4 * even, 16), _rank_for(cost, room, limit), limit))


def _rank_for(cost: Callable[[int], int], numbers: int, limit: int) -> int:
    low, high = 0, limit
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if cost(middle) <= numbers else (low, middle - 1)
    return low
