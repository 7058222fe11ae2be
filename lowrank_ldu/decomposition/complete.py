"""Eliminate with complete pivoting: the largest entry of all that remains."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from lowrank_ldu.decomposition.elimination import ElementGrowthError, PivotSteps, in_host_memory
from lowrank_ldu.decomposition.gram import blocks_of_rows

if TYPE_CHECKING:
    from lowrank_ldu.backend import Array, Backend
    from lowrank_ldu.decomposition.elimination import Elimination

# Entries of a block: a megabyte in float32. It is searched while it is still in the cache of the core that updated it.
_CACHED = 2**18


def eliminate_complete(W: Array, rank: int, backend: Backend) -> Elimination:
    """Eliminate `rank` steps of W (m, n) with complete pivoting.

    It costs O(m n r), in r passes over the matrix: each updates it and finds the next pivot.

    The Schur complement stays where it is: eliminated rows and columns become zero and so are not chosen again, which
    saves the interchanges. Of entries that tie, the first one along the shorter side is taken.
    """
    xp = backend.xp
    steps = PivotSteps(W, rank, backend)
    is_tall = W.shape[0] > W.shape[1]
    # Lines run along the longer side, and are contiguous: a copy alone would keep the order of W in memory.
    oriented = W.T if is_tall else W
    lines = xp.empty(oriented.shape, dtype=W.dtype, device=W.device)
    lines[...] = oriented
    blocks = [lines[some, :] for some in blocks_of_rows(lines.shape, entries=_entries(W))]
    largest = xp.concat([_largest_of_lines(block, backend) for block in blocks])
    for _ in range(rank):
        line, place, runner_up = _choose(lines, largest, backend)
        along, across = (xp.asarray(part, copy=True) for part in (lines[line, :], lines[:, place]))
        pivot = across[line]
        if float(pivot) == 0.0:
            break
        if is_tall:
            along = along / pivot
            steps.append(place, line, along, across, runner_up)
        else:
            across = across / pivot
            steps.append(line, place, across, along, runner_up)
        # In exact arithmetic they become zero; where they are zero already, they stay so.
        lines[line, :] = 0
        lines[:, place] = 0
        along, across = (xp.asarray(part, copy=True) for part in (along, across))
        along[place] = 0
        across[line] = 0
        start = 0
        for block in blocks:
            end = start + block.shape[0]
            backend.subtract_outer(block, across[start:end], along)
            largest[start:end] = _largest_of_lines(block, backend)
            start = end
    return steps.finish()


def _entries(W: Array) -> int:
    """Return the entries of a block: all of them where each call costs more than the cache saves."""
    return _CACHED if in_host_memory(W) else math.prod(W.shape)


def _largest_of_lines(block: Array, backend: Backend) -> Array:
    """Return the largest magnitude in each line.

    Maxima and minima: two passes without the temporary that abs() would write.
    """
    xp = backend.xp
    return xp.maximum(xp.max(block, axis=1), -xp.min(block, axis=1))


def _choose(lines: Array, largest: Array, backend: Backend) -> tuple[int, int, float]:
    """Return line and place of the largest magnitude, and its runner-up.

    The latter is the second largest over the largest, 0 for a zero matrix.
    """
    # Single numbers are read off the host's memory, where they cost nothing.
    of_lines = np.array(backend.to_numpy(largest))
    line = int(of_lines.argmax())
    magnitudes = np.abs(backend.to_numpy(lines[line, :]))
    place = int(magnitudes.argmax())
    found = float(magnitudes[place])
    if not math.isfinite(found):
        raise ElementGrowthError
    if found == 0.0:
        return line, place, 0.0
    magnitudes[place] = 0
    of_lines[line] = magnitudes.max()
    return line, place, float(of_lines.max()) / found
