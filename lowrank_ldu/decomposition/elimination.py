"""Hold the steps of an elimination."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from lowrank_ldu.backend import backend_of
from lowrank_ldu.backend.pivots import index_vector, order_from

if TYPE_CHECKING:
    from collections.abc import Callable

    from lowrank_ldu.backend import Array, Backend


class ElementGrowthError(OverflowError):
    """Elements have grown beyond the largest number.

    The matrix has to be scaled first.
    """


class ZeroPivotError(ValueError):
    """A pivot that was given is zero above entries that are not."""


@dataclass(frozen=True, eq=False)
class Elimination:
    """Hold the first r steps of an elimination.

    `W[:, q] ~ left @ rows`, in arrays of its own.

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
    """Eliminate W where arrays can be written to, and where small steps are cheap.

    In NumPy, if the library's own arrays cannot be written to, and if they are in the host's memory anyway: these loops
    go through thousands of small steps, and NumPy's cost the least. JAX would compile each anew for each shape.
    """
    if backend.in_place and not in_host_memory(W):
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


def in_host_memory(array: Array) -> bool:
    """Say whether NumPy can look at an array where it is."""
    return isinstance(array, np.ndarray) or str(array.device) == "cpu"


class PivotSteps:
    """Collect the steps of an elimination of W (m, n)."""

    def __init__(self, W: Array, rank: int, backend: Backend) -> None:
        self._W, self._rank, self._backend = W, rank, backend
        self._rows: list[int] = []
        self._columns: list[int] = []
        self._left: list[Array] = []
        self._upper: list[Array] = []
        self._runner_up: list[float] = []

    def append(self, i: int, j: int, column: Array, row: Array, runner_up: float) -> None:
        """Record the pivot at (i, j).

        With the column (m,) of L and the row (n,) of D U, both in W's own order.
        """
        self._rows.append(i)
        self._columns.append(j)
        self._left.append(column)
        self._upper.append(row)
        self._runner_up.append(runner_up)

    def finish(self) -> Elimination:
        """Return the elimination, in pivot order.

        Steps that are missing are those of a remaining matrix that is zero.
        """
        xp, W, rank = self._backend.xp, self._W, self._rank
        found = len(self._rows)
        permutation = index_vector(order_from(self._rows, W.shape[0]), W, self._backend)
        column_permutation = index_vector(order_from(self._columns, W.shape[1]), W, self._backend)
        left = xp.zeros((W.shape[0], rank), dtype=W.dtype, device=W.device)
        rows = xp.zeros((rank, W.shape[1]), dtype=W.dtype, device=W.device)
        if found:
            left[:, :found] = xp.stack(self._left, axis=1)
            rows[:found, :] = xp.take(xp.stack(self._upper), column_permutation, axis=1)
        for step, i in enumerate(self._backend.to_numpy(permutation[:rank])):
            left[int(i), step] = 1
        runner_up = xp.asarray(self._runner_up + [0.0] * (rank - found), dtype=W.dtype, device=W.device)
        return Elimination(permutation, column_permutation, left, rows, runner_up)
