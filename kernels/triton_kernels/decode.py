"""Compute the whole layer in one launch.

This is for the few rows of a decoding step: reading the weight takes their time.
"""

from __future__ import annotations

import triton
import triton.language as tl

from lowrank_ldu.kernels.triton_kernels.common import load_block, row_deltas


@triton.jit
def decode_kernel(
    x,
    weight,
    bias,
    left,
    right,
    deltas,
    index,
    scales,
    y,
    projected,
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
    right_row,
    right_column,
    BIAS: tl.constexpr,
    USES: tl.constexpr,
    SCALED: tl.constexpr,
    PRECISION: tl.constexpr,
    DEVICE: tl.constexpr,  # part of the key that tuning results are kept under
    BLOCK_T: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """Write y (T, M) and the projection (T, R).

    For T <= BLOCK_T and R <= BLOCK_R.

    Every program reads its own rows of the weight, once, and the whole of right (R, K): that is small, is read by all
    at about the same time and stays in the L2 cache, whereas a second launch would wait for the first.
    """
    block = tl.program_id(0)
    rows = tl.arange(0, BLOCK_T).to(tl.int64)
    terms = tl.arange(0, BLOCK_R).to(tl.int64)
    columns = block.to(tl.int64) * BLOCK_M + tl.arange(0, BLOCK_M)
    total = tl.zeros((BLOCK_T, BLOCK_M), dtype=tl.float32)
    projection = tl.zeros((BLOCK_T, BLOCK_R), dtype=tl.float32)
    for first in range(0, K, BLOCK_K):
        inner = first + tl.arange(0, BLOCK_K).to(tl.int64)
        values = load_block(x, rows, inner, T, K, x_row, x_column)
        weights = load_block(weight, inner, columns, K, M, weight_column, weight_row)
        factor = load_block(right, inner, terms, K, R, right_column, right_row)
        total = tl.dot(values, weights, total, input_precision=PRECISION)
        projection = tl.dot(values, factor, projection, input_precision=PRECISION)

    place = rows[:, None] * R + terms[None, :]
    inside = (rows[:, None] < T) & (terms[None, :] < R)
    # Rounded as the two launches for many rows round it.
    rounded = projection.to(x.dtype.element_ty)
    if block == 0:
        tl.store(projected + place, rounded, mask=inside)
    delta = row_deltas(deltas, index, scales, rows, terms, T, R, A, USES, SCALED)
    scaled = (rounded.to(tl.float32) * delta).to(x.dtype.element_ty)
    expansion = load_block(left, terms, columns, R, M, left_column, left_row)
    total = tl.dot(scaled, expansion, total, input_precision=PRECISION)
    if BIAS:
        total += tl.load(bias + columns, mask=columns < M, other=0.0).to(tl.float32)[None, :]
    inside = (rows[:, None] < T) & (columns[None, :] < M)
    tl.store(y + rows[:, None] * M + columns[None, :], total.to(y.dtype.element_ty), mask=inside)
