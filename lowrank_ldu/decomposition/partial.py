"""Partial (row) pivoting, truncated: the first r steps at the price of an m x r panel."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lowrank_ldu.decomposition.elimination import Elimination

if TYPE_CHECKING:
    from lowrank_ldu.backend import Array, Backend


def eliminate_partial(W: Array, rank: int, backend: Backend) -> Elimination:
    """Eliminate `rank` columns of W (..., m, n) with partial pivoting; cost O(m r^2 + r^2 n).

    With partial pivoting the first r columns of L and the pivot order depend on the first r columns of W only. So the
    panel W[:, :r] is factored (getrf), and the rest of the pivot rows follows from one triangular solve (trsm). The
    result is the truncation of the full factorisation.
    """
    xp = backend.xp
    packed, permutation = backend.lu(W[..., :rank])
    lower = xp.tril(packed, k=-1) + unit_diagonal_like(packed, backend)
    rows = xp.triu(packed[..., :rank, :])
    if W.shape[-1] > rank:
        pivot_rows = take_rows(W, permutation[..., :rank], backend)[..., rank:]
        rest = backend.solve_triangular(packed[..., :rank, :], pivot_rows, lower=True, unit_diagonal=True)
        rows = xp.concat([rows, rest], axis=-1)
    return Elimination(permutation, None, lower, rows)


def unit_diagonal_like(matrix: Array, backend: Backend) -> Array:
    """Return the identity's first columns in the shape (m, r), dtype and device of `matrix` (..., m, r)."""
    device = backend.xp.empty_like(matrix).device
    return backend.xp.eye(matrix.shape[-2], matrix.shape[-1], dtype=matrix.dtype, device=device)


def take_rows(matrix: Array, index: Array, backend: Backend) -> Array:
    """Return matrix[index] for a matrix (m, n), and the same for every matrix of a stack (..., m, n)."""
    if matrix.ndim == 2:
        return backend.xp.take(matrix, index, axis=0)
    return backend.xp.take_along_axis(matrix, index[..., None], axis=-2)
