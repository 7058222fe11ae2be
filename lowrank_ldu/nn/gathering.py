"""Gather the projection of a quantized layer from its own output."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch.nn.functional import linear

from lowrank_ldu.kernels.skeleton import amplification_of, largest_amplification
from lowrank_ldu.nn.cores import apply_core, scaled_core
from lowrank_ldu.validation import dtype_name

if TYPE_CHECKING:
    from torch import Tensor, nn

    from lowrank_ldu.nn.factors import Factors


def gathered_output(base_layer: nn.Module, x: Tensor, factors: Factors, core: Tensor) -> Tensor:
    """Return a quantized linear layer's output with an update.

    The projection x right^T is gathered from the layer's output y, and so the gradient goes back through the layer
    once. What the layer rounds, or quantizes of its input, is in the projection as well, enlarged by the skeleton's
    amplification: so this runs where plan "skeleton" is asked for, and not of itself.

    Parameters
    ----------
    base_layer : nn.Module
    x : Tensor, shape (..., n)
    factors : Factors
        Of the dequantized weight's own LDU.
    core : Tensor
        One core, or one for each row of the batch.

    Raises
    ------
    RuntimeError
        The factors are not of the weight's own LDU or of half its rank or more, or too many digits would be lost.
    """
    skeleton = factors.quantized_skeleton(base_layer)
    if skeleton is None:
        raise RuntimeError(f"plan 'skeleton' cannot run here: {factors.obstacle_to_gathering()}")
    y: Tensor = base_layer(x)
    limit = largest_amplification(y.dtype)
    given = getattr(base_layer, "bias", None)
    bias = given.detach() if isinstance(given, torch.Tensor) else None
    amplification = amplification_of(x.reshape(-1, x.shape[-1]), skeleton, factors.right, bias)
    if amplification > limit:
        raise RuntimeError(
            f"plan 'skeleton' cannot run here: rounding would be enlarged {amplification:.3g} times in the "
            f"projection; accepted: up to {limit:.3g} in {dtype_name(y)}"
        )
    taken = y.index_select(-1, skeleton.rows).to(skeleton.triangle.dtype)
    if bias is not None:
        taken = taken - bias[skeleton.rows].to(taken.dtype)
    projected = linear(taken, skeleton.triangle).to(factors.left.dtype)
    return y + linear(apply_core(projected, scaled_core(core, factors.scale)), factors.left).to(y.dtype)
