"""Compute the expansion in one pass over y.

y = x W^T + b + (a * delta) L^T: the update ends the base product's own sum.
"""

from __future__ import annotations

import triton
import triton.language as tl

from lowrank_ldu.kernels.triton_kernels.common import load_block, row_deltas


@triton.jit
def expand_kernel(
    x,
    weight,
    bias,
    projected,
    left,
    deltas,
    index,
    scales,
    y,
    tokens,  # T rounded up to a power of two: part of the key that tuning results are kept under
    T,
    K,
    M,
    R,
    A,
    x_row,
    x_column,
    weight_row,
    weight_column,
    left_row,
    left_column,
    BIAS: tl.constexpr,
    USES: tl.constexpr,
    SCALED: tl.constexpr,
    UPPER: tl.constexpr,
    PRECISION: tl.constexpr,
    DEVICE: tl.constexpr,  # part of the key that tuning results are kept under
    BLOCK_T: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_R: tl.constexpr,
    GROUP: tl.constexpr,
):
    """Write the expansion to y (T, M), contiguous.

    It is x (T, K) weight (M, K)^T + bias (M,) + (projected (T, R) * delta) left (M, R)^T.

    UPPER: left is zero where its column is greater than its row; blocks right of the diagonal are not loaded.
    """
    # Blocks of y in groups of GROUP rows of blocks, so that neighbors find x and the weights in the L2 cache.
    program = tl.program_id(0)
    row_blocks = tl.cdiv(T, BLOCK_T)
    column_blocks = tl.cdiv(M, BLOCK_M)
    per_group = GROUP * column_blocks
    first_row = program // per_group * GROUP
    size = min(row_blocks - first_row, GROUP)
    row_block = first_row + program % per_group % size
    column_block = program % per_group // size

    rows = row_block.to(tl.int64) * BLOCK_T + tl.arange(0, BLOCK_T)
    columns = column_block.to(tl.int64) * BLOCK_M + tl.arange(0, BLOCK_M)
    total = tl.zeros((BLOCK_T, BLOCK_M), dtype=tl.float32)
    for first in range(0, K, BLOCK_K):
        inner = first + tl.arange(0, BLOCK_K).to(tl.int64)
        values = load_block(x, rows, inner, T, K, x_row, x_column)
        weights = load_block(weight, inner, columns, K, M, weight_column, weight_row)
        total = tl.dot(values, weights, total, input_precision=PRECISION)

    end = R
    if UPPER:
        end = min(R, (column_block + 1) * BLOCK_M)
    # Few steps, often one: two stages, so that their buffers stay within those of the loop above.
    for first in tl.range(0, end, BLOCK_R, num_stages=2):
        terms = first + tl.arange(0, BLOCK_R).to(tl.int64)
        values = load_block(projected, rows, terms, T, R, R, 1)
        delta = row_deltas(deltas, index, scales, rows, terms, T, R, A, USES, SCALED)
        values = (values.to(tl.float32) * delta).to(values.dtype)
        weights = load_block(left, terms, columns, R, M, left_column, left_row)
        total = tl.dot(values, weights, total, input_precision=PRECISION)

    if BIAS:
        total += tl.load(bias + columns, mask=columns < M, other=0.0).to(tl.float32)[None, :]
    inside = (rows[:, None] < T) & (columns[None, :] < M)
    tl.store(y + rows[:, None] * M + columns[None, :], total.to(y.dtype.element_ty), mask=inside)
