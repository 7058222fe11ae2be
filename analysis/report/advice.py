"""Say what to do with a weight, and never to do what saves nothing."""

from __future__ import annotations

from dataclasses import dataclass
from statistics import median
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from collections.abc import Sequence

    from lowrank_ldu.analysis.measures.matrix import MatrixAnalysis

Choice = Literal["ldu", "low rank", "keep"]


@dataclass(frozen=True)
class Advice:
    """Hold what saves the most numbers at the largest target error.

    Attributes
    ----------
    choice : {"ldu", "low rank", "keep"}
        LDU of the weight itself with a refitted diagonal; the SVD or the near-best LDU; or the weight as it is.
    rank : int or None
    share : float
        Numbers of the factors over those of the weight; 1 for the weight.
    short, text : str
        For a cell of a table, and a sentence without its end.
    """

    choice: Choice
    rank: int | None
    share: float
    short: str
    text: str


def advice_of(matrix: MatrixAnalysis) -> Advice:
    """Return what to do with a matrix."""
    ldu = matrix.recommendation
    svd = next(item for item in matrix.needed if item.method == "svd")
    at_most = "" if matrix.svd_niter is None else "at most "
    # Two factors and a diagonal in between.
    low_rank = 1.0 if svd.rank is None else _share(svd.rank, matrix)
    if ldu.pays and ldu.rank is not None and _share(ldu.rank, matrix) <= low_rank:
        share = _share(ldu.rank, matrix)
        text = (
            f"LDU with {ldu.pivoting} pivoting at rank {ldu.rank}, the diagonal refitted, factors stored in "
            f"{ldu.storage}: {share:.0%} of the weight's numbers"
        )
        return Advice("ldu", ldu.rank, share, f"LDU {ldu.pivoting}, {ldu.rank}", text)
    needs = "" if ldu.rank is None else f"; LDU of the weight itself needs rank {ldu.rank}"
    nothing = f"{needs}, which saves nothing" if needs and not ldu.pays else needs
    if low_rank < 1:
        text = (
            f"the SVD, or the near-best LDU, which needs hardly more, at rank {at_most}{svd.rank}: {at_most}"
            f"{low_rank:.0%} of the weight's numbers{nothing}"
        )
        return Advice("low rank", svd.rank, low_rank, f"SVD, {'≤ ' if at_most else ''}{svd.rank}", text)
    if svd.rank is None:
        text = (
            f"keep the weight, as far as is known: no rank up to {svd.looked_at} is known to be enough for the SVD, "
            f"and larger ones were not looked at{nothing}"
        )
        return Advice("keep", None, 1.0, f"keep; none up to {svd.looked_at}", text)
    text = f"keep the weight: the SVD needs {at_most}{svd.rank}, which saves nothing{nothing}"
    return Advice("keep", None, 1.0, "keep", text)


def verdict(matrices: Sequence[MatrixAnalysis], target: float) -> str:
    """Return one sentence on what a target error saves in all matrices."""
    advice = [advice_of(matrix) for matrix in matrices]
    smaller = [each for each in advice if each.choice != "keep"]
    by_ldu = sum(each.choice == "ldu" for each in advice)
    unknown = sum(
        each.choice == "keep" and next(item for item in matrix.needed if item.method == "svd").rank is None
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
    return (
        f"At a relative error of {target:g}, {len(smaller)} of {len(advice)} matrices get smaller, to {typical:.0%} of "
        f"their numbers (median), and all together to {left / whole:.0%}: "
        f"{by_ldu} by LDU of the weight itself, {len(smaller) - by_ldu} by the SVD or the near-best LDU alone."
        f"{open_ones}"
    )


def _share(rank: int, matrix: MatrixAnalysis) -> float:
    return rank * (matrix.m + matrix.n + 1) / matrix.size
