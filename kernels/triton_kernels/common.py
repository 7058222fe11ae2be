"""Load data that several kernels share.

These are blocks of a matrix, and the diagonals of rows.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def load_block(matrix, rows, columns, height, width, row_stride, column_stride):
    """Return matrix[rows][:, columns], zero beyond the matrix (height, width); numbers are int64."""
    return tl.load(
        matrix + rows[:, None] * row_stride + columns[None, :] * column_stride,
        mask=(rows[:, None] < height) & (columns[None, :] < width),
        other=0.0,
    )


@triton.jit
def row_deltas(deltas, index, scales, rows, terms, T, R, A, USES: tl.constexpr, SCALED: tl.constexpr):
    """Return the diagonal of each row, (rows, terms) or (1, terms), float32.

    USES: adapters of a row, in index (T, USES); 0 for one diagonal for all. A number that is no adapter's gives NaN
    and reads nothing.
    """
    in_terms = terms[None, :] < R
    if USES == 0:
        total = tl.load(deltas + terms[None, :], mask=in_terms, other=0.0).to(tl.float32)
    else:
        total = tl.zeros((rows.shape[0], terms.shape[0]), dtype=tl.float32)
        for use in tl.static_range(USES):
            place = rows * USES + use
            which = tl.load(index + place, mask=rows < T, other=0).to(tl.int64)
            known = (which >= 0) & (which < A)
            delta = tl.load(deltas + which[:, None] * R + terms[None, :], mask=known[:, None] & in_terms, other=0.0)
            delta = tl.where(known[:, None], delta.to(tl.float32), float("nan"))
            if SCALED:
                delta *= tl.load(scales + place, mask=rows < T, other=0.0).to(tl.float32)[:, None]
            total += delta
    return total
