"""Loading a block of a matrix in any layout, zero where it reaches beyond the matrix."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def load_block(matrix, rows, columns, height, width, row_stride, column_stride):
    """Return matrix[rows][:, columns], (rows, columns), of a matrix (height, width); numbers are int64."""
    return tl.load(
        matrix + rows[:, None] * row_stride + columns[None, :] * column_stride,
        mask=(rows[:, None] < height) & (columns[None, :] < width),
        other=0.0,
    )
