"""The materialised plan: the weight with its update, made once for all rows."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch.nn.functional import linear

if TYPE_CHECKING:
    from torch import Tensor


def materialized_linear(
    x: Tensor, weight: Tensor, bias: Tensor | None, left: Tensor, right: Tensor, delta: Tensor
) -> Tensor:
    """Return x (W + left diag(delta) right)^T + b for x (T, n).

    Notes
    -----
    m n r multiply-adds more than the frozen layer forwards; backwards the gradient of the whole weight (T m n) and
    m n r. The sum is rounded once to W's dtype, as a merged weight is and as full fine-tuning under autocast rounds its
    float32 weights: in float16 and bfloat16 the output does not see an update below half a unit in the last place of W,
    but the gradient does, and delta itself is kept in float32. With delta = 0 y is bit for bit the base's. Autograd
    keeps x (T n values) and the sum (m n).
    """
    return linear(x, summed_weight(weight, left, right, delta), bias)


def summed_weight(weight: Tensor, left: Tensor, right: Tensor, delta: Tensor) -> Tensor:
    """Return W + left diag(delta) right (m, n), in W's dtype and layout; with delta = 0 it is W."""
    scaled = (left * delta).to(left.dtype)
    if weight.stride(0) == 1 and weight.stride(1) != 1:
        # Stored transposed: the sum is, too, so that the product with it takes the same path, to the bit.
        return torch.addmm(weight.T, right.T, scaled.T).T
    return torch.addmm(weight, scaled, right)
