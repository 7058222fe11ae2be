"""Apply each row's own block core to a projection, and sum their gradients by adapter."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def core_kernel(
    values,
    cores,
    index,
    scales,
    out,
    R,
    A,
    block_stride,
    out_stride,
    in_stride,
    SIZE,
    USES: tl.constexpr,
    SCALED: tl.constexpr,
    BLOCK_OUT: tl.constexpr,
    BLOCK_IN: tl.constexpr,
):
    """Write the products of one row's group to out (T, R): sum_s scales[s] K_s values, with K_s of each use.

    cores (A, G, SIZE, SIZE) are read with out_stride between terms of the product and in_stride between those of
    values: K or its transpose. A row with a number that is no adapter's is NaN, and nothing is read for it.

    A program reads the cores of its row once. Rows of one adapter find its core in the L2 cache.
    """
    row = tl.program_id(0).to(tl.int64)
    group = tl.program_id(1).to(tl.int64)
    terms = tl.program_id(2) * BLOCK_OUT + tl.arange(0, BLOCK_OUT)
    total = tl.zeros((BLOCK_OUT,), dtype=tl.float32)
    for use in tl.static_range(USES):
        which = tl.load(index + row * USES + use).to(tl.int64)
        known = (which >= 0) & (which < A)
        limit = tl.where(known, SIZE, 0)
        start = cores + which * R * SIZE + group * block_stride
        product = tl.zeros((BLOCK_OUT,), dtype=tl.float32)
        for first in range(0, SIZE, BLOCK_IN):
            inner = first + tl.arange(0, BLOCK_IN)
            entries = tl.load(
                start + terms[:, None] * out_stride + inner[None, :] * in_stride,
                mask=(terms[:, None] < limit) & (inner[None, :] < limit),
                other=0.0,
            )
            own = tl.load(values + row * R + group * SIZE + inner, mask=inner < SIZE, other=0.0)
            product += tl.sum(entries * own.to(tl.float32)[None, :], axis=1)
        product = tl.where(known, product, float("nan"))
        if SCALED:
            product *= tl.load(scales + row * USES + use)
        total += product
    tl.store(out + row * R + group * SIZE + terms, total.to(out.dtype.element_ty), mask=terms < SIZE)


@triton.jit
def outer_kernel(
    left,
    right,
    order,
    offsets,
    scales,
    out,
    R,
    SIZE,
    USES: tl.constexpr,
    SCALED: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_OUT: tl.constexpr,
    BLOCK_IN: tl.constexpr,
):
    """Write the sums of outer products by adapter to out (A, R / SIZE, SIZE, SIZE).

    They are of the rows of left (T, R) and right (T, R), always added in the same order: use order[i] (of T * USES) is
    row order[i] // USES; adapter a's uses are those from offsets[a] to offsets[a + 1].
    """
    adapter = tl.program_id(0).to(tl.int64)
    group = tl.program_id(1).to(tl.int64)
    columns = tl.cdiv(SIZE, BLOCK_IN)
    rows_out = tl.program_id(2) // columns * BLOCK_OUT + tl.arange(0, BLOCK_OUT)
    rows_in = tl.program_id(2) % columns * BLOCK_IN + tl.arange(0, BLOCK_IN)
    first = tl.load(offsets + adapter)
    last = tl.load(offsets + adapter + 1)
    total = tl.zeros((BLOCK_OUT, BLOCK_IN), dtype=tl.float32)
    for block in range(first, last, BLOCK_T):
        place = block + tl.arange(0, BLOCK_T).to(tl.int64)
        inside = place < last
        use = tl.load(order + place, mask=inside, other=0)
        start = (use // USES) * R + group * SIZE
        outer = tl.load(
            left + start[None, :] + rows_out[:, None], mask=inside[None, :] & (rows_out[:, None] < SIZE), other=0.0
        ).to(tl.float32)
        inner = tl.load(
            right + start[:, None] + rows_in[None, :], mask=inside[:, None] & (rows_in[None, :] < SIZE), other=0.0
        ).to(tl.float32)
        if SCALED:
            outer *= tl.load(scales + use, mask=inside, other=0.0)[None, :]
        total = tl.dot(outer, inner, total, input_precision="ieee")
    place = adapter * R * SIZE + group * SIZE * SIZE + rows_out[:, None].to(tl.int64) * SIZE + rows_in[None, :]
    tl.store(out + place, total, mask=(rows_out[:, None] < SIZE) & (rows_in[None, :] < SIZE))
