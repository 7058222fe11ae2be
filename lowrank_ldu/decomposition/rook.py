"""Eliminate with rook pivoting: the largest of its row and column."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from lowrank_ldu.decomposition.elimination import ElementGrowthError, PivotSteps

if TYPE_CHECKING:
    from lowrank_ldu.backend import Array, Backend
    from lowrank_ldu.decomposition.elimination import Elimination


def eliminate_rook(W: Array, rank: int, backend: Backend) -> Elimination:
    """Eliminate `rank` steps of W (m, n) with rook pivoting.

    It costs O(r^2 (m + n)) usually, and O(m n r^2) at worst.

    The search (Poole and Neal, Linear Algebra Appl. 309, 2000) alternates between a column and a row of the Schur
    complement. Only those are formed, from W and the steps so far, so that nothing of size m x n is written.
    """
    schur = _LazySchurComplement(W, rank, backend)
    steps = PivotSteps(W, rank, backend)
    # A zero column of the Schur complement stays zero: columns that were passed over are not searched again.
    start = 0
    for _ in range(rank):
        pivot, start = _search(schur, start, backend)
        if pivot is None:
            break
        i, j, column, row, runner_up = pivot
        lower = column / column[i]
        schur.eliminate(i, j, lower, row)
        steps.append(i, j, lower, row, runner_up)
    return steps.finish()


class _LazySchurComplement:
    """Form rows and columns of the Schur complement.

    W minus the steps so far, zero in what has been eliminated.
    """

    def __init__(self, W: Array, rank: int, backend: Backend) -> None:
        xp = backend.xp
        self._W = W
        self._lower = xp.zeros((W.shape[0], rank), dtype=W.dtype, device=W.device)
        self._rows = xp.zeros((rank, W.shape[1]), dtype=W.dtype, device=W.device)
        self._live_rows = xp.ones((W.shape[0],), dtype=W.dtype, device=W.device)
        self._live_columns = xp.ones((W.shape[1],), dtype=W.dtype, device=W.device)
        self._done = 0
        self.eliminated_columns: set[int] = set()
        self.shape = W.shape

    def column(self, j: int) -> Array:
        done = self._done
        return (self._W[:, j] - self._lower[:, :done] @ self._rows[:done, j]) * self._live_rows

    def row(self, i: int) -> Array:
        done = self._done
        return (self._W[i, :] - self._lower[i, :done] @ self._rows[:done, :]) * self._live_columns

    def eliminate(self, i: int, j: int, lower: Array, row: Array) -> None:
        self._lower[:, self._done] = lower
        self._rows[self._done, :] = row
        self._live_rows[i] = 0
        self._live_columns[j] = 0
        self.eliminated_columns.add(j)
        self._done += 1


def _search(
    schur: _LazySchurComplement, start: int, backend: Backend
) -> tuple[tuple[int, int, Array, Array, float] | None, int]:
    """Search for the next pivot.

    Return (i, j, its column, its row, the runner-up's ratio) or None, and the next start column.
    """
    column = None
    for j in range(start, int(schur.shape[1])):
        if j in schur.eliminated_columns:
            continue
        column = schur.column(j)
        i, largest, second = _two_largest(column, backend)
        if largest > 0.0:
            break
    else:
        return None, int(schur.shape[1])
    start = j
    # Each turn moves to a larger entry, so the search ends; the bound covers an entry that rounds differently as
    # part of its row and as part of its column.
    for _ in range(sum(schur.shape)):
        row = schur.row(i)
        across, largest_across, second_across = _two_largest(row, backend)
        if across == j or largest_across <= largest:
            break
        j, column = across, schur.column(across)
        down, largest, second = _two_largest(column, backend)
        if down == i:
            break
        i = down
    second = max(second, second_across)
    row[j] = column[i]
    return (i, j, column, row, second / largest), start


def _two_largest(vector: Array, backend: Backend) -> tuple[int, float, float]:
    """Return the largest magnitude with its place, and the second."""
    xp = backend.xp
    magnitude = xp.abs(vector)
    place = int(xp.argmax(magnitude))
    largest = float(magnitude[place])
    if not math.isfinite(largest):
        raise ElementGrowthError
    magnitude[place] = 0
    return place, largest, float(xp.max(magnitude))
