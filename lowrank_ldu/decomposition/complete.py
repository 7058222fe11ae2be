"""Eliminate with complete pivoting: the largest entry of all that remains."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from lowrank_ldu.decomposition.elimination import ElementGrowthError, PivotSteps

if TYPE_CHECKING:
    from lowrank_ldu.backend import Array, Backend
    from lowrank_ldu.decomposition.elimination import Elimination


def eliminate_complete(W: Array, rank: int, backend: Backend) -> Elimination:
    """Eliminate `rank` steps of W (m, n) with complete pivoting.

    It costs O(m n r), in r passes over the matrix.

    The Schur complement stays where it is: eliminated rows and columns become zero and so are not chosen again, which
    saves the interchanges.
    """
    steps = PivotSteps(W, rank, backend)
    # The long axis is contiguous, so that each pass runs along it.
    schur = _copy_along_long_axis(W, backend)
    for _ in range(rank):
        i, j, runner_up = _largest(schur, backend)
        row = backend.xp.asarray(schur[i, :], copy=True)
        if float(row[j]) == 0.0:
            break
        column = schur[:, j] / row[j]
        backend.subtract_outer(schur, column, row)
        schur[:, j] = 0  # in exact arithmetic it is zero already
        steps.append(i, j, column, row, runner_up)
    return steps.finish()


def _copy_along_long_axis(W: Array, backend: Backend) -> Array:
    copy = backend.xp.asarray
    return copy(W, copy=True) if W.shape[1] >= W.shape[0] else copy(W.T, copy=True).T


def _largest(schur: Array, backend: Backend) -> tuple[int, int, float]:
    """Return the place of the largest magnitude and its runner-up.

    The latter is the second largest over the largest, 0 for a zero matrix.
    """
    xp = backend.xp
    # Maxima and minima of each row: two passes without the temporary that abs() would write.
    per_row = xp.maximum(xp.max(schur, axis=1), -xp.min(schur, axis=1))
    i = int(xp.argmax(per_row))
    in_row = xp.abs(schur[i, :])
    j = int(xp.argmax(in_row))
    largest = float(in_row[j])
    if not math.isfinite(largest):
        raise ElementGrowthError
    if largest == 0.0:
        return i, j, 0.0
    others = [
        float(xp.max(part)) for part in (per_row[:i], per_row[i + 1 :], in_row[:j], in_row[j + 1 :]) if part.shape[0]
    ]
    return i, j, max(others, default=0.0) / largest
