"""The Triton plan: forward and backward of the layer, of the kernels."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lowrank_ldu.kernels.triton_kernels import launch
from lowrank_ldu.kernels.triton_kernels.configurations import DECODE_RANK, DECODE_ROWS

if TYPE_CHECKING:
    from torch import Tensor


def forward(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    left: Tensor,
    right: Tensor,
    deltas: Tensor,
    index: Tensor | None,
    scales: Tensor | None,
    *,
    upper: bool,
) -> tuple[Tensor, Tensor]:
    """Return y (T, m) and a = x right^T (T, r): one launch for a decoding step, two for many rows."""
    if 0 < len(x) <= DECODE_ROWS and len(right) <= DECODE_RANK:
        return launch.decode(x, weight, bias, left, right, deltas, index, scales)
    projected, _ = launch.project(x, right, upper=upper)
    return launch.expand(x, weight, bias, projected, left, deltas, index, scales, upper=False), projected


def backward(
    gradient: Tensor,
    projected: Tensor,
    weight: Tensor,
    left: Tensor,
    right: Tensor,
    deltas: Tensor,
    index: Tensor | None,
    scales: Tensor | None,
    *,
    upper: bool,
    need_x: bool,
    need_product: bool,
) -> tuple[Tensor | None, Tensor | None]:
    """Return dx (T, n) and a * b (T, r), b = g left: the forward kernels on the transposed matrices."""
    expanded, product = launch.project(gradient, left.T, upper=False, other=projected if need_product else None)
    if not need_x:
        return None, product
    dx = launch.expand(gradient, weight.T, None, expanded, right.T, deltas, index, scales, upper=upper)
    return dx, product
