"""Gather the projection from y, apply the core, and add the expansion to y in one pass."""

from __future__ import annotations

import triton
import triton.language as tl

from lowrank_ldu.kernels.triton_kernels.common import load_block


@triton.jit
def skeleton_kernel(
    y,
    bias,
    numbers,
    transform,
    core,
    factor,
    projected,
    tokens,  # T rounded up to a power of two: part of the key that tuning results are kept under
    T,
    M,
    R,
    factor_row,
    factor_column,
    BIAS: tl.constexpr,
    PRECISION: tl.constexpr,
    DEVICE: tl.constexpr,  # part of the key that tuning results are kept under
    BLOCK_T: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_M: tl.constexpr,
):
    """Add the update to y (T, M), contiguous, and write the projection (T, R).

    The projection is (y - bias)[:, numbers] transform (R, R), and the update projected core (R, R) factor (R, M); for
    R <= BLOCK_R. transform and core are float32.

    A program has its rows of y alone: it gathers before it adds.
    """
    rows = tl.program_id(0).to(tl.int64) * BLOCK_T + tl.arange(0, BLOCK_T)
    terms = tl.arange(0, BLOCK_R).to(tl.int64)
    in_terms = terms < R
    chosen = tl.load(numbers + terms, mask=in_terms, other=0)
    inside = (rows[:, None] < T) & in_terms[None, :]
    entries = tl.load(y + rows[:, None] * M + chosen[None, :], mask=inside, other=0.0).to(tl.float32)
    if BIAS:
        entries -= tl.load(bias + chosen, mask=in_terms, other=0.0).to(tl.float32)[None, :]
        entries = tl.where(inside, entries, 0.0)
    # Everything is gathered before anything is added, in whichever order threads come.
    tl.debug_barrier()
    # In full float32: triangles enlarge what is rounded here.
    projection = tl.dot(entries, load_block(transform, terms, terms, R, R, R, 1), input_precision="ieee")
    rounded = projection.to(y.dtype.element_ty)
    tl.store(projected + rows[:, None] * R + terms[None, :], rounded, mask=inside)
    applied = tl.dot(rounded.to(tl.float32), load_block(core, terms, terms, R, R, R, 1), input_precision="ieee")
    applied = applied.to(y.dtype.element_ty)
    for first in range(0, M, BLOCK_M):
        columns = first + tl.arange(0, BLOCK_M).to(tl.int64)
        weights = load_block(factor, terms, columns, R, M, factor_row, factor_column)
        place = y + rows[:, None] * M + columns[None, :]
        within = (rows[:, None] < T) & (columns[None, :] < M)
        total = tl.load(place, mask=within, other=0.0).to(tl.float32)
        total = tl.dot(applied, weights, total, input_precision=PRECISION)
        tl.store(place, total.to(y.dtype.element_ty), mask=within)
