"""Factor matrices by LDU at pivots that are known.

Without a search every machine builds the same factors.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from lowrank_ldu.backend import full_precision
from lowrank_ldu.backend.pivots import index_vector, order_from
from lowrank_ldu.decomposition.blocks import restore_rows, take_rows
from lowrank_ldu.decomposition.elimination import Elimination, ZeroPivotError, on_writable
from lowrank_ldu.decomposition.ldu import LDU, Pivoting, check_pivoting, split_and_fold
from lowrank_ldu.validation import check_matrix

if TYPE_CHECKING:
    from collections.abc import Sequence

    from lowrank_ldu.backend import Array, ArrayType, Backend

# Of a pivot that is rounding: beyond it, what the step adds elsewhere is more than its column holds.
_LARGEST_MULTIPLIER = 1000


@full_precision()
def ldu_at_pivots(
    W: ArrayType, rows: Sequence[int], columns: Sequence[int] | None = None, *, pivoting: Pivoting = "partial"
) -> LDU[ArrayType]:
    """Factor W with the pivots at (rows[i], columns[i]), in that order.

    Pivot searches are discontinuous: where two candidates nearly tie, another rounding of W or another LAPACK takes
    the other one, and every later term differs. With the pivots given, the factors depend on W continuously.

    Parameters
    ----------
    W : array, shape (m, n)
        As for `ldu`, a single matrix.
    rows : sequence of int, length r
        Pivot rows, `ldu(...).permutation[:r]`.
    columns : sequence of int, length r, optional
        Pivot columns, `ldu(...).column_permutation[:r]`; 0..r-1 if not given, as in partial pivoting.
    pivoting : str
        The strategy that the pivots came from, recorded in the result.

    Returns
    -------
    LDU

    Raises
    ------
    ValueError
        Pivots that are out of range, repeated, or of different number, or that W cannot be eliminated with since one
        of them is zero and its column is not, or so small that numbers grow beyond the largest one; pivoting is not a
        strategy; W as for `ldu`, or a stack.

    Notes
    -----
    The skeleton (CUR) form: with W[rows][:, columns] = L11 U11, L = W[:, columns] U11^-1 and D U = L11^-1 W[rows].

    Examples
    --------
    >>> import numpy as np
    >>> ldu_at_pivots(np.array([[1.0, 2.0], [4.0, 4.0]]), [1, 0]).diagonal
    array([4., 1.])
    """
    check_pivoting(pivoting)
    W, backend = check_matrix(W)
    if W.ndim != 2:
        raise ValueError(f"W has shape {tuple(W.shape)}; accepted: a single matrix (m, n)")
    m, n = (int(size) for size in W.shape)
    chosen_rows = check_pivots(rows, m, "rows")
    rank = len(chosen_rows)
    chosen_columns = check_pivots(range(rank) if columns is None else columns, n, "columns")
    if len(chosen_columns) != rank:
        raise ValueError(f"columns holds {len(chosen_columns)} pivots and rows {rank}; accepted: as many of each")

    def eliminate(W: Array, rank: int, backend: Backend) -> Elimination:
        permutation = index_vector(order_from(chosen_rows, m), W, backend)
        column_permutation = index_vector(order_from(chosen_columns, n), W, backend)
        permuted = backend.xp.take(take_rows(W, permutation, backend), column_permutation, axis=1)
        # Rounding may leave something of a column that was zero, and underflow may turn another into zero: such a
        # matrix is scaled and comes here again.
        finfo = backend.xp.finfo(W.dtype)
        rounding = m * float(finfo.eps) * float(backend.xp.max(backend.xp.abs(W)))
        negligible = max(rounding, float(finfo.smallest_normal))
        lower, upper_rows = eliminate_in_order(permuted, rank, negligible, backend)
        left = restore_rows(lower, permutation, backend)
        return Elimination(permutation, None if columns is None else column_permutation, left, upper_rows)

    return split_and_fold(W, lambda matrix, library: on_writable(eliminate, matrix, rank, library), pivoting, backend)


def check_pivots(pivots: Sequence[int], size: int, name: str) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    """Return distinct indices below `size` as a vector."""
    vector = np.asarray(pivots)
    if vector.ndim != 1 or vector.size == 0 or vector.dtype.kind not in "iu":
        raise ValueError(f"{name} is {pivots!r}; accepted: a sequence of at least one integer index")
    vector = vector.astype(np.int64)
    if vector.min() < 0 or vector.max() >= size:
        raise ValueError(f"{name} holds indices from {vector.min()} to {vector.max()}; accepted: 0 to {size - 1}")
    if len(np.unique(vector)) != len(vector):
        raise ValueError(f"{name} holds an index twice; accepted: each at most once")
    return vector


def eliminate_in_order(
    W: Array, rank: int, negligible: float, backend: Backend, *, noise: float = 0.0
) -> tuple[Array, Array]:
    """Return L (m, r) and D U (r, n).

    They are the factors of the permuted W (m, n).

    By halves; the pivots are on the diagonal.

    The left half of the columns is eliminated, then the right half in what remains of it: all the work beyond single
    columns is products and triangular solves. A pivot may be zero only over entries of at most `negligible`. It counts
    as zero where it is far smaller than its column, and that is nothing but rounding, of at most `noise`.
    """
    xp = backend.xp
    if rank == 1:
        pivot = W[0, 0]
        size = abs(float(pivot)) * _LARGEST_MULTIPLIER
        if size < noise and size < float(xp.max(xp.abs(W[:, 0]))) <= noise:
            pivot = xp.zeros_like(pivot)
            W = xp.concat([xp.zeros_like(W[:, :1]), W[:, 1:]], axis=1)
        if float(pivot) == 0.0 and float(xp.max(xp.abs(W[:, 0]))) > negligible:
            raise ZeroPivotError(
                "rows and columns hold a pivot that is zero in W, above entries that are not; accepted: pivots that "
                "were chosen for this matrix"
            )
        # A pivot is zero only where its whole column was, when the pivots were chosen: then there is nothing to divide.
        below = W[1:, :1] / xp.where(pivot == 0, xp.ones_like(pivot), pivot)
        below = xp.where(pivot == 0, xp.zeros_like(below), below)
        return xp.concat([xp.ones_like(W[:1, :1]), below]), W[:1, :]
    half = rank // 2
    left_lower, left_rows = eliminate_in_order(W[:, :half], half, negligible, backend, noise=noise)
    above = backend.solve_triangular(left_lower[:half, :], W[:half, half:], lower=True, unit_diagonal=True)
    rest = W[half:, half:] - left_lower[half:, :] @ above
    right_lower, right_rows = eliminate_in_order(rest, rank - half, negligible, backend, noise=noise)
    corner = xp.zeros((half, rank - half), dtype=W.dtype, device=xp.empty_like(above).device)
    lower = xp.concat([left_lower, xp.concat([corner, right_lower])], axis=1)
    upper = xp.concat([xp.concat([left_rows, above], axis=1), xp.concat([corner.T, right_rows], axis=1)])
    return lower, upper
