"""Eliminate with randomized complete pivoting, in blocks.

Columns are chosen from a Gaussian sketch, rows by partial pivoting.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from lowrank_ldu.backend.pivots import index_vector, order_from
from lowrank_ldu.decomposition.blocks import restore_rows, take_rows, unit_lower
from lowrank_ldu.decomposition.elimination import ElementGrowthError, Elimination
from lowrank_ldu.validation import is_finite

if TYPE_CHECKING:
    from lowrank_ldu.backend import Array, Backend

_BLOCK = 64
_OVERSAMPLING = 8


def eliminate_randomized(W: Array, rank: int, backend: Backend, seed: int) -> Elimination:
    """Eliminate `rank` steps of W (m, n) in blocks of 64 columns.

    It costs O(m n + r^2 (m + n)), in matrix products.

    A sketch Y = Omega S of the Schur complement S, with Omega Gaussian and a few rows more than the block has columns,
    shows which columns of S are large and independent. The sketch is brought forward from block to block without
    another pass over W, as in Gaussian elimination with randomized complete pivoting (Melgaard and Gu,
    arXiv 1511.08528). The columns of a block are those that LU with partial pivoting of Y^T takes as its pivots
    (Pearce, Chen, Dong and Martinsson, arXiv 2310.09417); the rows are chosen inside the block by partial pivoting.

    Omega is drawn by NumPy from `seed`, so that it is the same for every array library and device.
    """
    xp = backend.xp
    m, n = (int(size) for size in W.shape)
    generator = np.random.default_rng(seed)
    gaussian = generator.standard_normal((min(_BLOCK, rank) + _OVERSAMPLING, m))
    omega = xp.astype(backend.from_numpy(gaussian.astype(np.float32), W), W.dtype)
    sketch = omega @ W

    chosen_rows = chosen_columns = np.empty(0, dtype=np.int64)
    lower = xp.zeros((m, 0), dtype=W.dtype, device=W.device)
    rows = xp.zeros((0, n), dtype=W.dtype, device=W.device)
    for first in range(0, rank, _BLOCK):
        width = min(_BLOCK, rank - first)
        if not is_finite(sketch, backend):
            raise ElementGrowthError  # the columns would be taken blindly
        block = _sketched_columns(sketch, chosen_columns, width, backend)
        chosen_columns = np.concatenate([chosen_columns, block])
        column_order = order_from(chosen_columns, n)
        row_order = order_from(chosen_rows, m)

        panel_columns = index_vector(block, W, backend)
        panel = xp.take(W, panel_columns, axis=1) - lower @ xp.take(rows, panel_columns, axis=1)
        packed, local = backend.lu(xp.take(panel, index_vector(row_order[first:], W, backend), axis=0))
        row_order[first:] = row_order[first:][backend.to_numpy(local)]
        chosen_rows = row_order[: first + width]

        pivots = index_vector(chosen_rows[first:], W, backend)
        beyond = index_vector(column_order[first + width :], W, backend)
        pivot_rows = take_rows(W, pivots, backend) - take_rows(lower, pivots, backend) @ rows
        pivot_rows = xp.take(pivot_rows, beyond, axis=1)
        if first + width < n:
            pivot_rows = backend.solve_triangular(packed[:width, :], pivot_rows, lower=True, unit_diagonal=True)

        corner = xp.triu(packed[:width, :])
        below = unit_lower(packed, backend)
        new_lower = restore_rows(
            xp.concat([xp.zeros_like(panel[:first, :]), below]), index_vector(row_order, W, backend), backend
        )
        eliminated = xp.zeros((width, first), dtype=W.dtype, device=W.device)
        new_rows = xp.concat([eliminated, corner, pivot_rows], axis=1)
        new_rows = restore_rows(new_rows.T, index_vector(column_order, W, backend), backend).T

        sketch = sketch - (omega @ new_lower) @ new_rows
        lower = xp.concat([lower, new_lower], axis=1)
        rows = xp.concat([rows, new_rows], axis=0)

    permutation = index_vector(order_from(chosen_rows, m), W, backend)
    column_permutation = index_vector(order_from(chosen_columns, n), W, backend)
    return Elimination(permutation, column_permutation, lower, xp.take(rows, column_permutation, axis=1))


def _sketched_columns(sketch: Array, taken: np.ndarray[Any, Any], width: int, backend: Backend) -> np.ndarray[Any, Any]:
    """Choose `width` columns that are not in `taken`.

    They are the first pivots of LU with partial pivoting of the sketch's transpose.
    """
    transposed = backend.xp.matrix_transpose(sketch)
    _, order = backend.lu(transposed[:, : min(transposed.shape)])
    order = backend.to_numpy(order)
    return order[~np.isin(order, taken)][:width]
