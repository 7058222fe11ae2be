"""Compute the hybrid plan.

Rows go through the materialized weight, the core's gradient through the thin products.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch.nn.functional import linear

from lowrank_ldu.kernels.call import Gradients
from lowrank_ldu.kernels.core_gradients import adapter_gradients
from lowrank_ldu.kernels.gathered import summed_expansion, summed_projection
from lowrank_ldu.kernels.materialized import summed_weight

if TYPE_CHECKING:
    from torch import Tensor

    from lowrank_ldu.kernels.call import Adapters, Layer, Needs


def forward(x: Tensor, layer: Layer, adapters: Adapters) -> tuple[Tensor, Tensor]:
    """Return y (T, m) and a = x right^T (T, r).

    y goes through the summed weight; a is the projection.

    Notes
    -----
    T m n + m n r + T r n multiply-adds, and one pass over y, where the factored plan takes T r m more than the frozen
    layer and a second pass. With a skeleton a is gathered from y, T r^2 and not T r n. The sum is rounded to W's dtype
    as `materialized_linear` says.
    """
    y = linear(x, summed_weight(layer, adapters), layer.bias)
    projected = summed_projection(x, y, layer, adapters) if _gathers(x, layer) else None
    return y, linear(x, layer.right) if projected is None else projected


def backward(gradient: Tensor, projected: Tensor, layer: Layer, adapters: Adapters, needs: Needs) -> Gradients:
    """Return the gradients of x and of the core.

    Each is None if not needed.

    Notes
    -----
    The sum is made again, m n r multiply-adds or r / T of a product with W, rather than kept between the passes: m n
    values for every layer of a model. With columns of a skeleton b = g left is gathered from dx.
    """
    dx = expanded = to_core = None
    if needs.x:
        dx = gradient @ summed_weight(layer, adapters)
        if needs.cores and _gathers(gradient, layer):
            expanded = summed_expansion(dx, layer, adapters)
    if needs.cores:
        expanded = gradient @ layer.left if expanded is None else expanded
        to_core, _ = adapter_gradients(expanded, projected, adapters, need_cores=True, need_scales=False)
    return Gradients(dx, to_core, None)


def _gathers(x: Tensor, layer: Layer) -> bool:
    """Return whether to gather thin products, where there is a skeleton.

    It takes the inverse of an (r, r) matrix in float64, and a look at how good it is, for which a GPU is waited for.
    """
    return layer.skeleton is not None and x.device.type == "cpu" and gathering_pays(len(x), *layer.right.shape)


def gathering_pays(tokens: float, rank: float, features: float) -> bool:
    """Return whether a gathered thin product costs less than a plain one.

    T r^2 + some 6 r^3 multiply-adds, the latter in float64, against T r n.
    """
    return 12 * rank**2 + tokens * rank < tokens * features
