"""Book-keeping of a pivot search that takes rows and columns from where they stand, one step at a time."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lowrank_ldu.backend.pivots import index_vector, order_from
from lowrank_ldu.decomposition.elimination import Elimination

if TYPE_CHECKING:
    from lowrank_ldu.backend import Array, Backend


class PivotSteps:
    """Collects the steps of an elimination of W (m, n) and puts them into pivot order."""

    def __init__(self, W: Array, rank: int, backend: Backend) -> None:
        self._W, self._rank, self._backend = W, rank, backend
        self._rows: list[int] = []
        self._columns: list[int] = []
        self._left: list[Array] = []
        self._upper: list[Array] = []
        self._runner_up: list[float] = []

    def append(self, i: int, j: int, column: Array, row: Array, runner_up: float) -> None:
        """Record the pivot at (i, j) with the column (m,) of L and the row (n,) of D U, both in W's own order."""
        self._rows.append(i)
        self._columns.append(j)
        self._left.append(column)
        self._upper.append(row)
        self._runner_up.append(runner_up)

    def finish(self) -> Elimination:
        """Return the elimination; steps that are missing are those of a remaining matrix that is zero."""
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
