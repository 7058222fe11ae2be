"""Compute the projection a = x F^T.

The factor F has few rows. On the way back it is b = g F^T, with a * b beside it.
"""

from __future__ import annotations

import triton
import triton.language as tl

from lowrank_ldu.kernels.triton_kernels.common import load_block


@triton.jit
def project_kernel(
    x,
    factor,
    out,
    other,
    product,
    tokens,  # T rounded up to a power of two: part of the key that tuning results are kept under
    T,
    K,
    R,
    x_row,
    x_column,
    factor_row,
    factor_column,
    UPPER: tl.constexpr,
    PRODUCT: tl.constexpr,
    PRECISION: tl.constexpr,
    DEVICE: tl.constexpr,  # part of the key that tuning results are kept under
    BLOCK_T: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """Write the projection to out (T, R), contiguous.

    It is x (T, K) times factor (R, K) transposed.

    UPPER: factor is zero where its column is less than its row; blocks left of the diagonal are not loaded.
    PRODUCT: also write other (T, R) times the result to product (T, R), in float32.
    """
    block = tl.program_id(1)
    rows = tl.program_id(0).to(tl.int64) * BLOCK_T + tl.arange(0, BLOCK_T)
    terms = block.to(tl.int64) * BLOCK_R + tl.arange(0, BLOCK_R)
    start = 0
    if UPPER:
        start = block * BLOCK_R // BLOCK_K * BLOCK_K
    total = tl.zeros((BLOCK_T, BLOCK_R), dtype=tl.float32)
    for first in range(start, K, BLOCK_K):
        columns = first + tl.arange(0, BLOCK_K).to(tl.int64)
        values = load_block(x, rows, columns, T, K, x_row, x_column)
        weights = load_block(factor, columns, terms, K, R, factor_column, factor_row)
        total = tl.dot(values, weights, total, input_precision=PRECISION)
    place = rows[:, None] * R + terms[None, :]
    inside = (rows[:, None] < T) & (terms[None, :] < R)
    tl.store(out + place, total.to(out.dtype.element_ty), mask=inside)
    if PRODUCT:
        beside = tl.load(other + place, mask=inside, other=0.0).to(tl.float32)
        tl.store(product + place, total * beside, mask=inside)
