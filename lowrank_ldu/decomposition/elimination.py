"""What a pivoting strategy hands back, before the diagonal is split off."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from lowrank_ldu.backend import backend_of

if TYPE_CHECKING:
    from collections.abc import Callable

    from lowrank_ldu.backend import Array, Backend


class ElementGrowthError(OverflowError):
    """The remaining matrix has grown beyond the largest number; the matrix has to be scaled first."""


class ZeroPivotError(ValueError):
    """A pivot that was given is zero above entries that are not."""


@dataclass(frozen=True, eq=False)
class Elimination:
    """The first r steps of Gaussian elimination, `W[:, q] ~ left @ rows`, in arrays of its own.

    Attributes
    ----------
    permutation : int64 array, shape (..., m)
        p: row `p[i]` of W stands in row i of the permuted matrix. The first r are the pivot rows.
    column_permutation : int64 array, shape (..., n), or None
        q, likewise for the columns; None when columns are not exchanged.
    left : array, shape (..., m, r)
        P L: with its rows in the order p, unit lower trapezoidal.
    rows : array, shape (..., r, n)
        D U, upper trapezoidal: the pivot rows as they were when they were eliminated with.
    runner_up : array, shape (..., r), or None
        Largest magnitude among the pivot's competitors over the pivot's own, where the strategy compared them all;
        None where they can be read off `left`.
    """

    permutation: Array
    column_permutation: Array | None
    left: Array
    rows: Array
    runner_up: Array | None = None


def on_writable(
    eliminate: Callable[[Array, int, Backend], Elimination], W: Array, rank: int, backend: Backend
) -> Elimination:
    """Return eliminate(W, rank, backend); on the host, in NumPy, if the library's arrays cannot be written to.

    Such a library (JAX) compiles each operation anew for each shape, and these loops go through many.
    """
    if backend.in_place:
        return eliminate(W, rank, backend)
    host = backend.to_numpy(W)
    steps = eliminate(host, rank, backend_of(host))

    def back(array: Array) -> Array:
        return None if array is None else backend.from_numpy(array, W)

    return Elimination(
        back(steps.permutation),
        back(steps.column_permutation),
        back(steps.left),
        back(steps.rows),
        back(steps.runner_up),
    )
