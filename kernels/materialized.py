"""Compute the materialized plan.

The weight with its update is made once for all rows.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch.nn.functional import linear

from lowrank_ldu.kernels.cores import apply_cores

if TYPE_CHECKING:
    from torch import Tensor

    from lowrank_ldu.kernels.call import Adapters, Layer


def materialized_linear(x: Tensor, layer: Layer, adapters: Adapters) -> Tensor:
    """Return the output for x (T, n).

    It is x (W + left K right)^T + b.

    Notes
    -----
    m n r multiply-adds more than the frozen layer forwards; backwards the gradient of the whole weight (T m n) and
    m n r. The sum is rounded once to W's dtype, as a merged weight is and as full fine-tuning under autocast rounds its
    float32 weights: in float16 and bfloat16 the output does not see an update below half a unit in the last place of W,
    but the gradient does, and K itself is kept in float32. With K = 0 y is bit for bit the base's. Autograd
    keeps x (T n values) and the sum (m n).
    """
    return linear(x, summed_weight(layer, adapters), layer.bias)


def summed_weight(layer: Layer, adapters: Adapters) -> Tensor:
    """Return W + left K right (m, n).

    It has W's dtype and layout; with K = 0 it is W.
    """
    weight, left = layer.weight, layer.left
    scaled = apply_cores(left, adapters, transposed=True)
    if weight.stride(0) == 1 and weight.stride(1) != 1:
        # Stored transposed: the sum is, too, so that the product with it takes the same path, to the bit.
        return torch.addmm(weight.T, layer.right.T, scaled.T).T
    return torch.addmm(weight, scaled, layer.right)
