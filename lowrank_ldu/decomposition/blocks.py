"""Take matrices apart, single ones and stacks alike."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from lowrank_ldu.backend.pivots import index_vector, inverse_permutation

if TYPE_CHECKING:
    from collections.abc import Callable

    from lowrank_ldu.backend import Array, Backend


def unit_lower(packed: Array, backend: Backend) -> Array:
    """Return L (..., m, r) from the packed factors of a panel.

    m >= r; written over them where that works.
    """
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
    """Stack arrays in the shape of a stack W (..., m, n).

    One array for each matrix, in its order; None where they are None.
    """
    if arrays[0] is None:
        return None
    xp = backend.xp
    return xp.reshape(xp.stack(arrays), (*W.shape[:-2], *arrays[0].shape))


def matrices_of(W: Array, backend: Backend) -> list[Array]:
    """Return the matrices of a stack (..., m, n)."""
    flat = backend.xp.reshape(W, (-1, *W.shape[-2:]))
    return [flat[i, ...] for i in range(flat.shape[0])]


def take_rows(matrix: Array, index: Array, backend: Backend) -> Array:
    """Take rows of each matrix (m, n).

    There is one matrix, or a stack of them.
    """
    if matrix.ndim == 2:
        return backend.xp.take(matrix, index, axis=0)
    return backend.xp.take_along_axis(matrix, index[..., None], axis=-2)


def restore_rows(permuted: Array, order: Array, backend: Backend) -> Array:
    """Undo a permutation of rows.

    Row i of `permuted` goes to row order[i]; written over it where that works.
    """
    host = backend.to_numpy(order)
    if permuted.ndim == 2 and backend.in_place:
        # After r steps of elimination at most 2 r rows are not where they were.
        moved = np.flatnonzero(host != np.arange(len(host)))
        rows = take_rows(permuted, index_vector(moved, permuted, backend), backend)
        permuted[index_vector(host[moved], permuted, backend), :] = rows
        return permuted
    return take_rows(permuted, backend.from_numpy(inverse_permutation(host), permuted), backend)


def replace_leading(matrix: Array, block: Array, backend: Backend) -> Array:
    """Replace the first r columns of a matrix (..., r, n).

    By `block` (..., r, r), written over it where that works.
    """
    rank = block.shape[-1]
    if backend.in_place:
        matrix[..., :rank] = block
        return matrix
    return backend.xp.concat([block, matrix[..., rank:]], axis=-1)


def split_diagonal(
    rows: Array,
    backend: Backend,
    *,
    ceiling: float = math.inf,
    largest_number: float | None = None,
    rounded: Callable[[Array], Array] | None = None,
) -> tuple[Array, Array]:
    """Split rows (..., r, n) = diag(z) U into z and U.

    U is written over the rows where that works.

    z is the pivot and U has a unit diagonal, except where no finite U has one: where the pivot is zero and the row is
    not, or so small beside its row that the squares of U would overflow, or where z cannot hold it. There z is
    the row's own largest entry, at most `ceiling`, and U carries pivot / z on its diagonal. A row that is zero
    altogether gets z = 0 and the unit row, so that U stays unit upper trapezoidal.

    Parameters
    ----------
    rows : array
        Upper trapezoidal.
    ceiling : float
        Largest magnitude allowed in z.
    largest_number : float, optional
        Of the dtype that U is meant for; that of `rows` if not given.
    rounded : callable, optional
        Rounds z to what can be stored. U is what remains of the rows then, so that the rounding of z is not enlarged.
    """
    xp = backend.xp
    rank, n = rows.shape[-2:]
    pivot = xp.linalg.diagonal(rows[..., :rank])
    # Reductions need no temporaries of abs(): at this shape fresh memory costs as much as the arithmetic.
    highest, lowest = xp.max(rows, axis=-1), xp.min(rows, axis=-1)
    largest = xp.where(highest >= -lowest, highest, lowest)
    steepest = (float(largest_number or xp.finfo(rows.dtype).max) / (4 * n)) ** 0.5
    ordinary = (xp.abs(largest) / steepest < xp.abs(pivot)) & (xp.abs(pivot) <= ceiling)
    fallback = xp.clip(largest, -ceiling, ceiling)
    if rounded is not None:
        pivot, fallback = rounded(pivot), rounded(fallback)
        ordinary &= pivot != 0
    scale = xp.where(ordinary, pivot, fallback)
    empty = scale == 0
    # A row that z rounds away becomes zero.
    divisor = xp.where(empty, xp.full_like(scale, math.inf), scale)[..., None]
    if backend.in_place:
        rows /= divisor
        upper = rows
    else:
        upper = rows / divisor
    # Ones are written, since division may miss them: JAX multiplies by the reciprocal, and x * (1 / x) is not always 1.
    leading = upper[..., :rank]
    unit = xp.eye(rank, dtype=xp.bool, device=scale.device) & (ordinary | empty)[..., None]
    return scale, replace_leading(upper, xp.where(unit, xp.ones_like(leading), leading), backend)
