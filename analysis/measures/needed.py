"""Find the smallest ranks that reach target errors."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np

from lowrank_ldu.decomposition import Pivoting  # noqa: TC001  # journals are decoded by the annotations
from lowrank_ldu.diagnostics.cost import factor_numbers

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    import numpy.typing as npt

Method = Literal["svd", "ldu", "ldu_lowrank", "ldu_core"]


@dataclass(frozen=True)
class NeededRank:
    """Hold the rank that one method needs for one error.

    Attributes
    ----------
    method : str
        "svd"; "ldu", of the weight itself; "ldu_lowrank", the near-best LDU; or "ldu_core", the best r x r matrix
        between the factors of LDU.
    pivoting : str or None
        Of LDU and of the core's factors.
    refit : bool
        Whether the diagonal is the one that is best for the terms.
    error : float
        The target.
    rank : int or None
        The smallest rank whose error is at most the target, whatever those of larger ranks are; None if no rank that
        was looked at is known to have it.
    bound : bool
        Whether a smaller rank may have it, or, without a rank, one that was looked at: not all of their errors are
        known, or only upper bounds of them.
    numbers : int or None
        What the factors of that rank are stored in (`lowrank_ldu.diagnostics.cost.factor_numbers`).
    looked_at : int
        The largest rank that was looked at.
    """

    method: Method
    pivoting: Pivoting | None
    refit: bool
    error: float
    rank: int | None
    bound: bool
    numbers: int | None
    looked_at: int


def needed_ranks(
    errors: Sequence[float] | npt.NDArray[np.float64],
    targets: Iterable[float],
    shape: tuple[int, int],
    *,
    method: Method = "svd",
    pivoting: Pivoting | None = None,
    refit: bool = False,
    exact: bool | npt.NDArray[np.bool_] = True,
) -> list[NeededRank]:
    """Find the smallest ranks that reach the targets.

    NaN is an error that is not known.

    Parameters
    ----------
    errors : sequence of float
        Relative errors at the ranks 1, 2, ...
    targets : iterable of float
    shape : tuple of int
        Of the matrix.
    method : str
    pivoting : str, optional
    refit : bool
        Whether they are of the best diagonal.
    exact : bool, or array of bool
        Whether they are the errors, and not upper bounds of them; of all ranks or of each.

    Examples
    --------
    >>> [needed.rank for needed in needed_ranks([1.2, 0.6, 0.2], [0.5, 0.1], (9, 9))]
    [3, None]
    """
    values = np.asarray(errors)
    unknown = np.isnan(values) | ~np.broadcast_to(exact, values.shape)
    found = []
    for error in targets:
        reached = np.flatnonzero(values <= error)
        rank = int(reached[0]) + 1 if reached.size else None
        bound = bool(unknown[: None if rank is None else rank - 1].any())
        numbers = None if rank is None else factor_numbers(method, *shape, rank)
        found.append(NeededRank(method, pivoting, refit, error, rank, bound, numbers, len(values)))
    return found
