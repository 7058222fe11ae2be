"""Which rank and pivoting to take for a layer, by a rule that is written down, and why."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from lowrank_ldu.analysis.needed_rank import NeededRank
    from lowrank_ldu.decomposition import Pivoting
    from lowrank_ldu.diagnostics import Diagnostics

# Rounding the stored factors may add one per cent to the error: sqrt(e^2 + s^2) <= 1.01 e.
_STORAGE_SHARE = 0.1417


@dataclass(frozen=True)
class Recommendation:
    """What to take, if LDU is to be taken.

    Attributes
    ----------
    rank : int or None
        None if no rank that was looked at is enough.
    pivoting : str
    refit : bool
        Always: the best diagonal costs one product and is never worse.
    storage : str or None
        Dtype that the factors can be stored in without adding a hundredth to their error at the largest measured rank
        up to `rank`; None if nothing below it was measured.
    pays : bool
        Whether the factors of that rank are smaller than the weight.
    reason : str
    """

    rank: int | None
    pivoting: Pivoting
    refit: bool
    storage: str | None
    pays: bool
    reason: str


def recommend(
    needed: Sequence[NeededRank], figures: Sequence[Diagnostics], target: float, *, exact: bool
) -> Recommendation:
    """Recommend the strategy that reaches the target error with the fewest terms, its diagonal refitted.

    Of strategies that need the same rank the first one asked for is taken. Where none reaches the target in the ranks
    looked at, the one with the least refitted error at the largest of them, and no rank.

    Parameters
    ----------
    needed : sequence of NeededRank
        Of LDU with refit, a strategy each, and of the SVD, at several targets.
    figures : sequence of Diagnostics
        Of LDU with these strategies, at the ranks measured.
    target : float
        Relative Frobenius error to reach.
    exact : bool
        Whether the ranks needed by the SVD are the true ones; if not they are upper bounds.
    """
    ldu = [item for item in needed if item.method == "ldu" and item.refit and item.error == target]
    best = next(item for item in needed if item.method == "svd" and item.error == target)
    reached = [item for item in ldu if item.rank is not None]
    m, n = figures[0].m, figures[0].n
    if reached:
        chosen = min(reached, key=lambda item: item.rank or 0)
        rank = chosen.rank
        others = [f"{item.pivoting} {_rank(item)}" for item in ldu if item is not chosen]
        beside = f" ({', '.join(others)})" if others else ""
        reason = (
            f"{chosen.pivoting} pivoting with a refitted diagonal reaches a relative error of {target:g} at rank "
            f"{rank}{beside}; the SVD at {_rank(best, bound=not exact)}"
        )
        pivoting = chosen.pivoting
    else:
        largest = max(item.rank for item in figures)
        last = min((item for item in figures if item.rank == largest), key=lambda item: item.refit_frobenius_error)
        rank, pivoting = None, last.pivoting  # type: ignore[assignment]
        reason = (
            f"no rank up to {ldu[0].looked_at} reaches a relative error of {target:g}; at {largest} {pivoting} "
            f"pivoting with a refitted diagonal leaves {last.refit_frobenius_error:.3g}, the SVD "
            f"{last.svd_frobenius_error:.3g}"
        )
    assert pivoting is not None  # noqa: S101  # of LDU
    whole = m * n / (m + n)
    pays = rank is not None and rank < whole
    if rank is not None and not pays:
        reason += f"; above rank {int(whole)} the factors are larger than the weight"
    storage = _storage([item for item in figures if item.pivoting == pivoting], rank)
    return Recommendation(rank, pivoting, True, storage, pays, reason)


def _rank(needed: NeededRank, *, bound: bool = False) -> str:
    if needed.rank is None:
        return f"above {needed.looked_at}"
    return f"{needed.rank} or less" if bound else str(needed.rank)


def _storage(figures: Sequence[Diagnostics], rank: int | None) -> str | None:
    below = [item for item in figures if rank is None or item.rank <= rank]
    if not below:
        return None
    figure = max(below, key=lambda item: item.rank)
    allowed = _STORAGE_SHARE * figure.refit_frobenius_error
    losses = {"bfloat16": figure.storage_error_bfloat16, "float16": figure.storage_error_float16}
    safest = min(losses, key=losses.__getitem__)
    return safest if losses[safest] <= allowed else figure.dtype
