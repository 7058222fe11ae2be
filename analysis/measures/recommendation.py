"""Recommend a rank and a pivoting for a layer."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

import numpy as np

from lowrank_ldu.decomposition import Pivoting  # noqa: TC001  # journals are decoded by the annotations

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    import numpy.typing as npt

    from lowrank_ldu.diagnostics import Diagnostics


@dataclass(frozen=True)
class NeededRank:
    """Hold the rank that one method needs for one error.

    Attributes
    ----------
    method : str
        "svd" or "ldu".
    pivoting : str or None
        Of LDU.
    refit : bool
        Whether the diagonal is the one that is best for the terms.
    error : float
        The target.
    rank : int or None
        The smallest rank whose error is at most the target, whatever those of larger ranks are; None if no rank that
        was looked at has it.
    looked_at : int
        The largest of these.
    """

    method: str
    pivoting: Pivoting | None
    refit: bool
    error: float
    rank: int | None
    looked_at: int


def needed_ranks(
    errors: Sequence[float] | npt.NDArray[np.float64],
    targets: Iterable[float],
    *,
    pivoting: Pivoting | None = None,
    refit: bool = False,
) -> list[NeededRank]:
    """Find the smallest ranks that reach the targets.

    NaN reaches none.

    Parameters
    ----------
    errors : sequence of float
        Relative errors.
    targets : iterable of float
    pivoting : str, optional
        Of LDU; the errors are of the SVD if not given.
    refit : bool
        Whether they are of the best diagonal.

    Examples
    --------
    >>> [needed.rank for needed in needed_ranks([1.2, 0.6, 0.2], [0.5, 0.1])]
    [3, None]
    """
    method = "svd" if pivoting is None else "ldu"
    values = np.asarray(errors)
    found = []
    for error in targets:
        reached = np.flatnonzero(values <= error)
        rank = int(reached[0]) + 1 if reached.size else None
        found.append(NeededRank(method, pivoting, refit, error, rank, len(values)))
    return found


# Without a target, rounding the stored factors may add one per cent to the error.
_ROUNDED = 1.01


@dataclass(frozen=True)
class Recommendation:
    """Hold the recommended rank, pivoting and storage of LDU.

    With a refitted diagonal: that costs one product and is never worse.

    Attributes
    ----------
    rank : int or None
        None if no rank that was looked at is enough.
    pivoting : str
    storage : str
        Dtype that the factors can be stored in: the one of half precision that loses less, if the error stays within
        the target with its loss (or, without a rank, within a hundredth of what it is), or else that of the factors.
    pays : bool
        Whether the factors of that rank are smaller than the weight.
    reason : str
    """

    rank: int | None
    pivoting: Pivoting
    storage: str
    pays: bool
    reason: str


def recommend(
    needed: Sequence[NeededRank], candidates: Sequence[Diagnostics], target: float, *, exact: bool
) -> Recommendation:
    """Recommend the strategy with the fewest terms.

    It reaches the target error with its diagonal refitted.

    Of strategies that need the same rank the first one asked for is taken. Where none reaches the target in the ranks
    looked at, the one with the least refitted error at the largest of them, and no rank.

    Parameters
    ----------
    needed : sequence of NeededRank
        Of LDU with refit, a strategy each, and of the SVD, at several targets.
    candidates : sequence of Diagnostics
        Of LDU with each of these strategies, at the rank that it needs, or at the largest if it does not reach the
        target.
    target : float
        Relative Frobenius error to reach.
    exact : bool
        Whether the ranks needed by the SVD and its errors are the true ones; if not they are upper bounds.
    """
    ldu = [item for item in needed if item.method == "ldu" and item.refit and item.error == target]
    best = next(item for item in needed if item.method == "svd" and item.error == target)
    reached = [place for place, item in enumerate(ldu) if item.rank is not None]
    if not reached:
        return _nothing_reaches(candidates, ldu[0].looked_at, target, exact=exact)
    place = min(reached, key=lambda place: ldu[place].rank or 0)
    figures, rank = candidates[place], candidates[place].rank
    pivoting = _strategy(figures)
    others = [f"{item.pivoting} {_rank(item, exact=True)}" for item in ldu if item is not ldu[place]]
    beside = f" ({', '.join(others)})" if others else ""
    reason = (
        f"{pivoting} pivoting with a refitted diagonal reaches a relative error of {target:g} at rank "
        f"{rank}{beside}; the SVD at {_rank(best, exact=exact)}"
    )
    # L, z and U against W.
    whole = figures.m * figures.n / (figures.m + figures.n + 1)
    pays = rank < whole
    if not pays:
        reason += f"; from rank {math.ceil(whole)} on the factors are no smaller than the weight"
    return Recommendation(rank, pivoting, _storage(figures, target), pays, reason)


def _nothing_reaches(
    candidates: Sequence[Diagnostics], looked_at: int, target: float, *, exact: bool
) -> Recommendation:
    figures = min(candidates, key=lambda item: item.refit_frobenius_error)
    error = figures.refit_frobenius_error
    reason = (
        f"no rank up to {looked_at} reaches a relative error of {target:g}; at {figures.rank} {figures.pivoting} "
        f"pivoting with a refitted diagonal leaves {error:.3g}, the SVD {'' if exact else 'at most '}"
        f"{figures.svd_frobenius_error:.3g}"
    )
    return Recommendation(None, _strategy(figures), _storage(figures, _ROUNDED * error), False, reason)


def _strategy(figures: Diagnostics) -> Pivoting:
    return cast("Pivoting", figures.pivoting)


def _rank(needed: NeededRank, *, exact: bool) -> str:
    if needed.rank is None:
        return f"above {needed.looked_at}" if exact else f"a rank that is not known up to {needed.looked_at}"
    return str(needed.rank) if exact or needed.rank == 1 else f"{needed.rank} or less"


def _storage(figures: Diagnostics, allowed: float) -> str:
    losses = {"bfloat16": figures.storage_error_bfloat16, "float16": figures.storage_error_float16}
    safest = min(losses, key=losses.__getitem__)
    # The changes by rounding are independent of the error of the terms.
    error = math.hypot(figures.refit_frobenius_error, losses[safest])
    return safest if error <= allowed else figures.dtype
