"""Pieces of matrices, the same for single ones and stacks."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from lowrank_ldu.backend.pivots import index_vector, inverse_permutation

if TYPE_CHECKING:
    from lowrank_ldu.backend import Array, Backend


def unit_lower(packed: Array, backend: Backend) -> Array:
    """Return L (..., m, r) from the packed factors of a panel with m >= r, written over them where that works."""
    xp = backend.xp
    rank = packed.shape[-1]
    top = packed[..., :rank, :]
    identity = xp.eye(rank, dtype=packed.dtype, device=xp.empty_like(top).device)
    top = xp.tril(top, k=-1) + identity
    if backend.in_place:
        packed[..., :rank, :] = top
        return packed
    return xp.concat([top, packed[..., rank:, :]], axis=-2)


def stacked(arrays: list[Array], W: Array, backend: Backend) -> Array:
    """Return arrays, one for each matrix of a stack W (..., m, n) in its order, as a stack (..., *shape); or None."""
    if arrays[0] is None:
        return None
    xp = backend.xp
    return xp.reshape(xp.stack(arrays), (*W.shape[:-2], *arrays[0].shape))


def take_rows(matrix: Array, index: Array, backend: Backend) -> Array:
    """Return matrix[index] for a matrix (m, n), and the same for every matrix of a stack (..., m, n)."""
    if matrix.ndim == 2:
        return backend.xp.take(matrix, index, axis=0)
    return backend.xp.take_along_axis(matrix, index[..., None], axis=-2)


def restore_rows(permuted: Array, order: Array, backend: Backend) -> Array:
    """Undo a permutation of rows: row i of `permuted` goes to row order[i]; written over it where that works."""
    host = backend.to_numpy(order)
    if permuted.ndim == 2 and backend.in_place:
        # After r steps of elimination at most 2 r rows are not where they were.
        moved = np.flatnonzero(host != np.arange(len(host)))
        rows = take_rows(permuted, index_vector(moved, permuted, backend), backend)
        permuted[index_vector(host[moved], permuted, backend), :] = rows
        return permuted
    return take_rows(permuted, backend.from_numpy(inverse_permutation(host), permuted), backend)


def replace_leading(matrix: Array, block: Array, backend: Backend) -> Array:
    """Return matrix (..., r, n) with `block` (..., r, r) for its first r columns, written over it where that works."""
    rank = block.shape[-1]
    if backend.in_place:
        matrix[..., :rank] = block
        return matrix
    return backend.xp.concat([block, matrix[..., rank:]], axis=-1)
