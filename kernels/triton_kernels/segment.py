"""Sum rows by adapter in a fixed order.

The sum is the gradient of every adapter's diagonal.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def segment_kernel(
    product,
    order,
    offsets,
    scales,
    out,
    R,
    A,
    USES: tl.constexpr,
    SCALED: tl.constexpr,
    SPLITS: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_R: tl.constexpr,
):
    """Write the sums of rows by adapter to out.

    The rows are those of product (T, R), the sums out (SPLITS, A, R), each in SPLITS parts.

    Use order[i] (of T * USES) is row order[i] // USES; adapter a's uses are those from offsets[a] to offsets[a + 1].
    """
    adapter = tl.program_id(0).to(tl.int64)
    split = tl.program_id(2)
    terms = tl.program_id(1).to(tl.int64) * BLOCK_R + tl.arange(0, BLOCK_R)
    in_terms = terms[None, :] < R
    first = tl.load(offsets + adapter)
    last = tl.load(offsets + adapter + 1)
    size = tl.cdiv(last - first, SPLITS)
    start = first + split * size
    end = tl.minimum(start + size, last)
    total = tl.zeros((BLOCK_R,), dtype=tl.float32)
    for block in range(start, end, BLOCK_T):
        place = block + tl.arange(0, BLOCK_T).to(tl.int64)
        inside = place < end
        use = tl.load(order + place, mask=inside, other=0)
        rows = tl.load(
            product + (use // USES)[:, None] * R + terms[None, :], mask=inside[:, None] & in_terms, other=0.0
        )
        if SCALED:
            rows *= tl.load(scales + use, mask=inside, other=0.0).to(tl.float32)[:, None]
        total += tl.sum(rows, axis=0)
    tl.store(out + (split.to(tl.int64) * A + adapter) * R + terms, total, mask=terms < R)
