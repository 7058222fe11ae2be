"""Compute the hybrid plan.

Rows go through the materialized weight, the core's gradient through the thin products.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch.nn.functional import linear

from lowrank_ldu.kernels.call import Gradients
from lowrank_ldu.kernels.core_gradients import adapter_gradients
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
    layer and a second pass. The sum is rounded to W's dtype as `materialized_linear` says.
    """
    return linear(x, summed_weight(layer, adapters), layer.bias), linear(x, layer.right)


def backward(gradient: Tensor, projected: Tensor, layer: Layer, adapters: Adapters, needs: Needs) -> Gradients:
    """Return the gradients of x and of the core.

    Each is None if not needed.

    Notes
    -----
    The sum is made again, m n r multiply-adds or r / T of a product with W, rather than kept between the passes: m n
    values for every layer of a model.
    """
    dx = gradient @ summed_weight(layer, adapters) if needs.x else None
    to_core = None
    if needs.cores:
        expanded = gradient @ layer.left
        to_core, _ = adapter_gradients(expanded, projected, adapters, need_cores=True, need_scales=False)
    return Gradients(dx, to_core, None)
