"""Recommend a method and a rank for a layer."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from lowrank_ldu.analysis.measures.needed import Method  # noqa: TC001  # as the next
from lowrank_ldu.decomposition import Pivoting  # noqa: TC001  # journals are decoded by the annotations

if TYPE_CHECKING:
    from collections.abc import Sequence

    from lowrank_ldu.analysis.measures.needed import NeededRank
    from lowrank_ldu.diagnostics import Diagnostics

# Of methods that take as many numbers the first one is recommended: LDU of the weight itself takes the fewest products.
METHODS: dict[Method, str] = {
    "ldu": "LDU", "ldu_lowrank": "near-best LDU", "ldu_core": "LDU core", "svd": "SVD",
}  # fmt: skip


@dataclass(frozen=True)
class Recommendation:
    """Hold what reaches the largest target error with the fewest numbers.

    Attributes
    ----------
    method : str or None
        As of `NeededRank`, LDU with a refitted diagonal: that costs one product and is never worse. None: keep the
        weight, since nothing that is known takes fewer numbers.
    rank : int or None
    pivoting : str or None
        Of LDU and of the core's factors.
    storage : str or None
        Dtype that the factors can be stored in: the one of half precision that loses less, if the error is known to
        stay within the target with its loss, or else that of the factors. The loss is known of LDU, and of the
        near-best LDU at the ranks asked for.
    numbers : int
        What the factors are stored in, or the entries of the weight.
    reason : str
        The ranks that all methods need.
    """

    method: Method | None
    rank: int | None
    pivoting: Pivoting | None
    storage: str | None
    numbers: int
    reason: str


def least_needed(needed: Sequence[NeededRank], method: Method, target: float) -> NeededRank:
    """Return what a method needs for a target error: of LDU with a refitted diagonal.

    Of the pivoting strategies that which needs the lowest rank, the first one of several, or the first one if none
    reaches it.
    """
    items = [item for item in needed if item.method == method and item.error == target]
    if method == "ldu":
        items = [item for item in items if item.refit]
    return min(items, key=lambda item: math.inf if item.rank is None else item.rank)


def recommend(needed: Sequence[NeededRank], candidates: Sequence[Diagnostics], target: float) -> Recommendation:
    """Recommend the method that takes the fewest numbers, or none if all take as many as the weight.

    Parameters
    ----------
    needed : sequence of NeededRank
        Of all methods, at several targets.
    candidates : sequence of Diagnostics
        Of LDU with each pivoting, at the rank that it needs with a refitted diagonal, or at the largest if it does not
        reach the target; and of near-best LDU at some ranks.
    target : float
        Relative Frobenius error to reach.
    """
    whole = candidates[0].m * candidates[0].n
    least = [least_needed(needed, method, target) for method in METHODS]
    best = min(least, key=lambda item: whole if item.numbers is None else item.numbers)
    reason = _reason(needed, least, candidates, target)
    if best.numbers is None or best.numbers >= whole:
        return Recommendation(None, None, None, None, whole, reason)
    return Recommendation(
        best.method, best.rank, best.pivoting, _storage(best, candidates, target), best.numbers, reason
    )


def _reason(
    needed: Sequence[NeededRank], least: Sequence[NeededRank], candidates: Sequence[Diagnostics], target: float
) -> str:
    """Return the ranks that all methods need in words."""
    ldu = least[0]
    others = [
        f"{item.pivoting} {rank_in_words(item)}"
        for item in needed
        if (item.method, item.refit, item.error) == ("ldu", True, target) and item is not ldu
    ]
    beside = f" ({', '.join(others)})" if others else ""
    core = least[2]
    reason = (
        f"a relative error of {target:g} takes rank {rank_in_words(ldu)} by LDU with {ldu.pivoting} pivoting and a "
        f"refitted diagonal{beside}, {rank_in_words(core)} by the best core between the factors of {core.pivoting} "
        f"pivoting, {rank_in_words(least[1])} by the near-best LDU and {rank_in_words(least[3])} by the SVD"
    )
    if ldu.rank is not None:
        return reason
    figures = min((item for item in candidates if item.method == "ldu"), key=lambda item: item.refit_frobenius_error)
    return (
        f"{reason}; at rank {figures.rank} {figures.pivoting} pivoting with a refitted diagonal leaves "
        f"{figures.refit_frobenius_error:.3g}"
    )


def rank_in_words(needed: NeededRank) -> str:
    """Return a needed rank for a sentence.

    Examples
    --------
    >>> from lowrank_ldu.analysis.measures.needed import NeededRank
    >>> rank_in_words(NeededRank("svd", None, False, 0.5, 3, True, 30, 8))
    '3 or less'
    """
    if needed.rank is None:
        return f"a number that is not known up to {needed.looked_at}" if needed.bound else f"above {needed.looked_at}"
    return f"{needed.rank} or less" if needed.bound else str(needed.rank)


def _storage(best: NeededRank, candidates: Sequence[Diagnostics], target: float) -> str:
    key = best.method, best.pivoting, best.rank
    figures = next((item for item in candidates if (item.method, item.pivoting, item.rank) == key), None)
    if figures is None:
        return candidates[0].dtype
    losses = {"bfloat16": figures.storage_error_bfloat16, "float16": figures.storage_error_float16}
    safest = min(losses, key=losses.__getitem__)
    # The changes by rounding are independent of the error of the terms.
    error = math.hypot(figures.refit_frobenius_error, losses[safest])
    return safest if error <= target else figures.dtype
