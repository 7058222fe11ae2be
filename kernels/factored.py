"""Compute the factored plan.

The update is added in place to the base's output and gradient.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch.nn.functional import linear

from lowrank_ldu.kernels.call import Gradients
from lowrank_ldu.kernels.core_gradients import adapter_gradients
from lowrank_ldu.kernels.cores import apply_cores
from lowrank_ldu.kernels.grouped import grouped_product

if TYPE_CHECKING:
    from torch import Tensor

    from lowrank_ldu.kernels.call import Adapters, Layer, Needs


def forward(x: Tensor, layer: Layer, adapters: Adapters) -> tuple[Tensor, Tensor]:
    """Return y (T, m) and a = x right^T (T, r).

    Notes
    -----
    With cores of zero y is bit for bit the base's: what is added to it is zero.
    """
    projected = linear(x, layer.right)
    y = linear(x, layer.weight, layer.bias)
    y.addmm_(*pair_with_cores(projected, layer.left.T, adapters))
    return y, projected


def backward(gradient: Tensor, projected: Tensor, layer: Layer, adapters: Adapters, needs: Needs) -> Gradients:
    """Return the gradients of x, of cores and of scales.

    Each is None if not needed.
    """
    expanded = gradient @ layer.left
    dx = None
    if needs.x:
        dx = gradient @ layer.weight
        dx.addmm_(*pair_with_cores(expanded, layer.right, adapters, transposed=True))
    to_cores, to_scales = adapter_gradients(
        expanded, projected, adapters, need_cores=needs.cores, need_scales=needs.scales
    )
    return Gradients(dx, to_cores, to_scales)


def pair_with_cores(
    projected: Tensor, factor: Tensor, adapters: Adapters, *, transposed: bool = False
) -> tuple[Tensor, Tensor]:
    """Return two matrices whose product is projected K^T factor.

    Parameters
    ----------
    projected, factor : Tensor, shapes (T, r) and (r, m)
    adapters : Adapters
    transposed : bool
        K instead of its transpose.
    """
    # In their own dtype where the cores are as wide; else what is wide is rounded once, after the product.
    if adapters.of_rows is None and factor.numel() < projected.numel():
        return projected, apply_cores(factor.T, adapters, transposed=not transposed).T
    if adapters.of_rows is None or adapters.cores.ndim == 2:
        return apply_cores(projected, adapters, transposed=transposed), factor
    return grouped_product(projected, adapters, transposed=transposed), factor
