"""Say what to do with a weight, and never to do what saves nothing."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from statistics import median
from typing import TYPE_CHECKING

from lowrank_ldu.analysis.measures.recommendation import METHODS, least_needed
from lowrank_ldu.diagnostics.cost import factor_numbers

if TYPE_CHECKING:
    from collections.abc import Sequence

    from lowrank_ldu.analysis.measures.matrix import MatrixAnalysis
    from lowrank_ldu.analysis.measures.needed import Method, NeededRank

SHORT: dict[Method, str] = {"ldu": "LDU", "ldu_lowrank": "near-best", "ldu_core": "core", "svd": "SVD"}


@dataclass(frozen=True)
class Advice:
    """Hold what saves the most numbers at the largest target error.

    Attributes
    ----------
    method : str or None
        As of `Recommendation`; None for the weight as it is.
    rank : int or None
    share : float
        Numbers of the factors over those of the weight; 1 for the weight.
    short, text : str
        For a cell of a table, and a sentence without its end.
    is_bound : bool
        Whether a smaller rank may do.
    """

    method: Method | None
    rank: int | None
    share: float
    short: str
    text: str
    is_bound: bool = False


def needed_by_method(matrix: MatrixAnalysis, target: float) -> list[NeededRank]:
    """Return what LDU, near-best LDU, LDU cores and the SVD need for a target, in this order."""
    return [least_needed(matrix.needed, method, target) for method in METHODS]


def advice_of(matrix: MatrixAnalysis) -> Advice:
    """Return what to do with a matrix."""
    best = matrix.recommendation
    needed = needed_by_method(matrix, max(item.error for item in matrix.needed))
    if best.method is None:
        return _keep(needed)
    (chosen,) = (item for item in needed if item.method == best.method)
    share = best.numbers / matrix.size
    by = f" {best.pivoting}" if best.pivoting else ""
    with_pivots = f" with {best.pivoting} pivoting" if best.pivoting else ""
    refitted = ", the diagonal refitted" if best.method == "ldu" else ""
    at_most = "at most " if chosen.bound else ""
    text = (
        f"{METHODS[best.method]}{with_pivots} at rank {at_most}{best.rank}{refitted}, factors stored in "
        f"{best.storage}: {at_most}{share:.0%} of the weight's numbers"
    )
    short = f"{SHORT[best.method]}{by}, {'≤ ' if chosen.bound else ''}{best.rank}"
    return Advice(best.method, best.rank, share, short, text, chosen.bound)


def _keep(needed: Sequence[NeededRank]) -> Advice:
    looked_at = max(item.looked_at for item in needed)
    if _is_open(needed):
        text = (
            f"keep the weight, as far as is known: up to rank {looked_at} nothing is known to be enough and smaller, "
            "and larger ones were not looked at"
        )
        return Advice(None, None, 1.0, f"keep; none up to {looked_at}", text)
    return Advice(None, None, 1.0, "keep", "keep the weight: no factors that are enough are smaller")


def _is_open(needed: Sequence[NeededRank]) -> bool:
    """Whether ranks that were not looked at may be enough and save something.

    The near-best LDU needs the fewest numbers, or hardly more than the SVD.
    """
    return next(item for item in needed if item.method == "ldu_lowrank").rank is None


def verdict(matrices: Sequence[MatrixAnalysis], target: float) -> str:
    """Return one sentence on what the largest target error saves in all matrices."""
    advice = [advice_of(matrix) for matrix in matrices]
    smaller = [each for each in advice if each.method is not None]
    unknown = sum(
        each.method is None and _is_open(needed_by_method(matrix, target))
        for each, matrix in zip(advice, matrices, strict=True)
    )
    # What was not looked at is not said to save nothing.
    open_ones = f" For {unknown} of {len(advice)} no rank that was looked at is known to be enough." if unknown else ""
    if not smaller:
        return (
            f"At a relative error of {target:g}, none of {len(advice)} matrices gets smaller by any factorization that "
            f"was looked at: keep the weights{', as far as is known' if unknown else ''}.{open_ones}"
        )
    whole = sum(matrix.size for matrix in matrices)
    left = sum(each.share * matrix.size for each, matrix in zip(advice, matrices, strict=True))
    typical = median(each.share for each in smaller)
    at_most = "at most " if unknown or any(each.is_bound for each in smaller) else ""
    counts = Counter(each.method for each in smaller)
    by = ", ".join(f"{counts[method]} by {name}" for method, name in METHODS.items() if counts[method])
    return (
        f"At a relative error of {target:g}, {len(smaller)} of {len(advice)} matrices get smaller, to {typical:.0%} of "
        f"their numbers (median), and all together to {at_most}{left / whole:.0%}: {by}.{open_ones}"
    )


def by_method(matrices: Sequence[MatrixAnalysis], target: float) -> str:
    """Return one sentence on what each method alone saves at a target error."""
    whole = sum(matrix.size for matrix in matrices)
    needed = [needed_by_method(matrix, target) for matrix in matrices]
    parts: list[str] = []
    for place, name in enumerate(METHODS.values()):
        of_method = [items[place] for items in needed]
        shares = [share_left(item, matrix) for item, matrix in zip(of_method, matrices, strict=True)]
        left = sum(share * matrix.size for share, matrix in zip(shares, matrices, strict=True)) / whole
        count = sum(share < 1 for share in shares)
        total = f" of {len(matrices)} matrices made smaller" if not parts else ""
        # Ranks that were not looked at, or of which only a bound is known, may do better.
        known = all(_is_settled(item, matrix) for item, matrix in zip(of_method, matrices, strict=True))
        at_most, at_least = ("", "") if known else ("at most ", "at least ")
        parts.append(f"{name} {at_most}{left:.0%} ({at_least}{count}{total})")
    return f"At a relative error of {target:g} each method alone leaves of all numbers: {', '.join(parts)}."


def _is_settled(needed: NeededRank, matrix: MatrixAnalysis) -> bool:
    """Whether no other rank can turn out to be enough and to take fewer numbers."""
    if needed.rank is not None or needed.bound:
        return not needed.bound
    beyond = needed.looked_at + 1
    if beyond > min(matrix.m, matrix.n):
        return True
    return factor_numbers(needed.method, matrix.m, matrix.n, beyond) >= matrix.size


def share_left(needed: NeededRank, matrix: MatrixAnalysis) -> float:
    """Return what is left of a weight's numbers by a method: at most all, since it can be kept."""
    return 1.0 if needed.numbers is None else min(needed.numbers / matrix.size, 1.0)
