"""Compute the factored plan.

The update is added in place to the base's output and gradient.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch.nn.functional import linear

from lowrank_ldu.kernels.reference import row_diagonals

if TYPE_CHECKING:
    from torch import Tensor

    from lowrank_ldu.kernels.call import Adapters, Layer


def forward(x: Tensor, layer: Layer, adapters: Adapters) -> tuple[Tensor, Tensor]:
    """Return y (T, m) and a = x right^T (T, r).

    Notes
    -----
    With deltas of zero y is bit for bit the base's: what is added to it is zero.
    """
    projected = linear(x, layer.right)
    y = linear(x, layer.weight, layer.bias)
    y.addmm_(*_scaled(projected, layer.left.T, adapters))
    return y, projected


def backward(
    gradient: Tensor, projected: Tensor, layer: Layer, adapters: Adapters, *, need_x: bool, need_product: bool
) -> tuple[Tensor | None, Tensor | None]:
    """Return dx (T, n) and a * b (T, r).

    b = g left; each is None if not needed; a * b is in float32 at least.
    """
    expanded = gradient @ layer.left
    dx = None
    if need_x:
        dx = gradient @ layer.weight
        dx.addmm_(*_scaled(expanded, layer.right, adapters))
    if not need_product:
        return dx, None
    # In the projection's own memory where it is as wide as the diagonal: new pages cost more than the product.
    return dx, expanded.to(adapters.deltas.dtype).mul_(projected)


def _scaled(projected: Tensor, factor: Tensor, adapters: Adapters) -> tuple[Tensor, Tensor]:
    """Return two matrices whose product is projected diag(delta) factor."""
    diagonal = row_diagonals(adapters)
    # In their own dtype where the diagonal is as wide; else the wide diagonal is rounded once, after the product.
    if adapters.of_rows is None and factor.numel() < projected.numel():
        return projected, (factor * diagonal.T).to(factor.dtype)
    return (projected * diagonal).to(projected.dtype), factor
