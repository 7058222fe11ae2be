"""The factored plan in torch: the update is accumulated into the base's output, and into its gradient, in place."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch.nn.functional import linear

from lowrank_ldu.kernels.reference import row_diagonals

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
) -> tuple[Tensor, Tensor]:
    """Return y (T, m) and the projection a = x right^T (T, r).

    Notes
    -----
    With deltas of zero y is bit for bit the base's: what is added to it is zero.
    """
    projected = linear(x, right)
    y = linear(x, weight, bias)
    y.addmm_(*_scaled(projected, left.T, deltas, index, scales))
    return y, projected


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
    need_x: bool,
    need_product: bool,
) -> tuple[Tensor | None, Tensor | None]:
    """Return dx (T, n) and the product a * b (T, r) with b = g left, float32 at least; each None where not needed."""
    expanded = gradient @ left
    dx = None
    if need_x:
        dx = gradient @ weight
        dx.addmm_(*_scaled(expanded, right, deltas, index, scales))
    if not need_product:
        return dx, None
    # In the projection's own memory where it is as wide as the diagonal: new pages cost more than the product.
    return dx, expanded.to(deltas.dtype).mul_(projected)


def _scaled(
    projected: Tensor, factor: Tensor, deltas: Tensor, index: Tensor | None, scales: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Return two matrices whose product is projected diag(delta) factor."""
    diagonal = row_diagonals(deltas, index, scales)
    # In their own dtype where the diagonal is as wide; else the wide diagonal is rounded once, after the product.
    if index is None and factor.numel() < projected.numel():
        return projected, (factor * diagonal.T).to(factor.dtype)
    return (projected * diagonal).to(projected.dtype), factor
