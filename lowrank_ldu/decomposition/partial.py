"""Eliminate with partial (row) pivoting.

The first r steps cost no more than an m x r panel.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from lowrank_ldu.decomposition.blocks import replace_leading, restore_rows, take_rows, unit_lower
from lowrank_ldu.decomposition.elimination import Elimination

if TYPE_CHECKING:
    from lowrank_ldu.backend import Array, Backend


def eliminate_partial(W: Array, rank: int, backend: Backend) -> Elimination:
    """Eliminate `rank` columns of W (..., m, n) with partial pivoting.

    It costs O(m r^2 + r^2 n).

    With partial pivoting the first r columns of L and the pivot order depend on the first r columns of W only. So the
    panel W[:, :r] is factored (getrf), and the rest of the pivot rows follows from one triangular solve (trsm). The
    result is the truncation of the full factorization.
    """
    xp = backend.xp
    packed, permutation = backend.lu(W[..., :rank])
    top = packed[..., :rank, :]
    rows = xp.triu(top)
    if W.shape[-1] > rank:
        # The rows have no name, so that their memory is reused at once: fresh pages cost as much as the arithmetic.
        solved = backend.solve_triangular(
            top, take_rows(W, permutation[..., :rank], backend), lower=True, unit_diagonal=True
        )
        # The panel already holds the solution in the leading columns, with exact zeros.
        rows = replace_leading(solved, rows, backend)
    return Elimination(permutation, None, restore_rows(unit_lower(packed, backend), permutation, backend), rows)
