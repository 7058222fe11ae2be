"""The smallest rank at which a method reaches a target error."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    import numpy.typing as npt

    from lowrank_ldu.decomposition import Pivoting


@dataclass(frozen=True)
class NeededRank:
    """What one method needs to reach one relative Frobenius error.

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
    """Look up the targets among the errors at ranks 1, 2, ...; NaN reaches none.

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
