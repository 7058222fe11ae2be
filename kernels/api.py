"""Compute the layer by public functions.

They check, ask the planner and call the plan.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch

from lowrank_ldu.kernels import validation
from lowrank_ldu.kernels.call import Adapters, Layer
from lowrank_ldu.kernels.cores import as_blocks
from lowrank_ldu.kernels.differentiation import operator_linear, packed_linear
from lowrank_ldu.kernels.planner import plan_call
from lowrank_ldu.kernels.plans import IMPLEMENTATIONS, Plan
from lowrank_ldu.kernels.torch_modes import autocast_dtype, cast, has_values

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

    from lowrank_ldu.kernels.packed import Packing
    from lowrank_ldu.kernels.skeleton import Skeleton


def ldu_linear(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    left: Tensor,
    right: Tensor,
    delta: Tensor,
    *,
    plan: Plan = "auto",
    packing: Packing | None = None,
    skeleton: Skeleton | None = None,
    upper: bool = False,
    check_values: bool = True,
) -> Tensor:
    r"""Return x W^T + b + (x right^T) K^T left^T.

    The output of the frozen layer and its low-rank update are computed together.

    Parameters
    ----------
    x : Tensor, shape (..., n)
        float16, bfloat16, float32 or float64. All tensors but delta are of its dtype, all of its device.
    weight : Tensor, shape (m, n)
        Frozen, in any layout.
    bias : Tensor, shape (m,), optional
    left : Tensor, shape (m, r)
        P L, constant.
    right : Tensor, shape (r, n)
        U, constant.
    delta : Tensor, shape (r,), (r, r) or (g, b, b) with g b = r
        The core K: a diagonal, as of the paper's `sigma z - sigma_0 z_ref`; dense; or blocks on its diagonal. Of any
        floating dtype; used in float32 at least.
    plan : str
        How it is computed, one of `PLANS`: "auto" takes the cheapest by the model of `lowrank_ldu.kernels.planner`.
        "reference": plain torch, with gradients of everything and of any order. "factored": the same products,
        accumulated in place; keeps the projection x right^T (T r values) for the backward pass and not x.
        "hybrid": rows go through the materialized weight, made anew on the way back; the gradient of delta through the
        thin products, and keeps what "factored" keeps.
        "materialized": W + left K right is made once for all rows. "packed": triangular products of the factors alone,
        where they are the whole weight and delta is a diagonal. "skeleton": the projection is gathered from the base's
        own output, and on the way back from the base's own gradient, where the factors are of W's own LDU. "triton":
        fused kernels, on a GPU.
    packing : Packing, optional
        Of this weight, which plan "packed" needs: `pack`.
    skeleton : Skeleton, optional
        Of this weight and these factors, which plan "skeleton" needs and "hybrid" uses: `skeleton_of`.
    upper : bool
        right is upper trapezoidal, as U of partial pivoting is: its zero half need not be read.
    check_values : bool
        Also check that delta is finite and right is as `upper` says. On a GPU that waits for it; skipped under
        torch.compile. Where a delta is not finite, y is not finite.

    Returns
    -------
    Tensor, shape (..., m)

    Raises
    ------
    TypeError, ValueError
        Tensors do not belong together, or delta is not finite.
    RuntimeError
        The plan that was asked for cannot run here; the message says why. There is no silent fallback.

    Notes
    -----
    Under autocast it computes in autocast's dtype, as `nn.Linear` does. Gradients: of x, bias and delta in every plan;
    "reference" and "materialized" also of weight, left and right. With delta = 0 the plans reference, factored, hybrid,
    materialized and skeleton return the bits of the frozen layer's output; packed and triton sum in another order.
    Equation (9) of arXiv 2410.13618 with RSM x and DSM x taken together.

    Examples
    --------
    >>> weight, left, right = torch.eye(2), torch.tensor([[1.0], [3.0]]), torch.tensor([[1.0, 1.0]])
    >>> ldu_linear(torch.tensor([1.0, 2.0]), weight, None, left, right, torch.ones(1))
    tensor([ 4., 11.])
    >>> left, right = torch.eye(2), torch.eye(2)
    >>> ldu_linear(torch.tensor([1.0, 2.0]), weight, None, left, right, torch.tensor([[0.0, 1.0], [0.0, 0.0]]))
    tensor([3., 2.])
    """
    layer, adapters = Layer(weight, bias, left, right, upper, skeleton), Adapters(delta)
    return compute(x, layer, adapters, plan, packing, check_values=check_values)


def ldu_linear_multi(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    left: Tensor,
    right: Tensor,
    deltas: Tensor,
    adapter_index: Tensor,
    *,
    scales: Tensor | None = None,
    plan: Plan = "auto",
    skeleton: Skeleton | None = None,
    upper: bool = False,
    check_values: bool = True,
) -> Tensor:
    """Return the layer's output for rows of several adapters.

    Each row uses one adapter or a mix of several.

    The factors are the base's, so that adapters differ in their cores only: whatever their number, a row costs what it
    costs with one.

    Parameters
    ----------
    x : Tensor, shape (..., n)
    weight, bias, left, right, plan, skeleton, upper, check_values
        As for `ldu_linear`.
    deltas : Tensor, shape (A, r), (A, r, r) or (A, g, b, b) with g b = r
        Cores of A adapters: diagonals, dense, or blocks.
    adapter_index : Tensor, int64 or int32
        The adapter of each row: of x's leading dimensions, or of the first of them (one adapter for each sequence).
        With `scales` it has a further dimension for the S adapters of a row.
    scales : Tensor, shape of adapter_index, optional
        Weights of a row's adapters: it is computed with the core sum_s scales[s] deltas[adapter_index[s]].

    Returns
    -------
    Tensor, shape (..., m)

    Raises
    ------
    IndexError
        There is no such adapter. Unchecked, such a row comes out as NaN.
    TypeError, ValueError, RuntimeError
        As for `ldu_linear`.

    Notes
    -----
    Gradients: of x, bias, deltas (rows summed by adapter; in a fixed order in plan "triton" and on the CPU) and scales.

    Examples
    --------
    >>> weight, left, right = torch.zeros(1, 1), torch.ones(1, 1), torch.ones(1, 1)
    >>> deltas, x = torch.tensor([[10.0], [20.0]]), torch.tensor([[1.0], [2.0]])
    >>> ldu_linear_multi(x, weight, None, left, right, deltas, torch.tensor([1, 0]))
    tensor([[20.],
            [20.]])
    >>> mix = torch.tensor([[0, 1], [0, 1]])
    >>> ldu_linear_multi(x, weight, None, left, right, deltas, mix, scales=torch.full((2, 2), 0.5))
    tensor([[15.],
            [30.]])
    """
    validation.check_index_dtype(adapter_index)
    layer, adapters = Layer(weight, bias, left, right, upper, skeleton), Adapters(deltas, adapter_index, scales)
    return compute(x, layer, adapters, plan, check_values=check_values)


def compute(
    x: Tensor,
    layer: Layer,
    adapters: Adapters,
    plan: Plan = "auto",
    packing: Packing | Callable[[], Packing | None] | None = None,
    *,
    check_values: bool = True,
) -> Tensor:
    """Return the layer's output; under autocast, in its dtype.

    Parameters
    ----------
    x : Tensor, shape (..., n)
    layer : Layer
    adapters : Adapters
        One core; or, with an index, what `ldu_linear_multi` takes.
    plan, check_values
        As for `ldu_linear`.
    packing : Packing or callable, optional
        As for `plan_call`.
    """
    dtype = autocast_dtype(x.device.type) if isinstance(x, torch.Tensor) else None
    if dtype is None:
        return _computed(x, layer, adapters, plan, packing, check_values=check_values)
    # As autocast does for nn.Linear: cast every tensor of the layer's product.
    weight, bias, left, right, upper, skeleton = layer
    bias = None if bias is None else cast(bias, dtype)
    layer = Layer(cast(weight, dtype), bias, cast(left, dtype), cast(right, dtype), upper, skeleton)
    with torch.autocast(x.device.type, enabled=False):
        return _computed(cast(x, dtype), layer, adapters, plan, packing, check_values=check_values)


def _computed(
    x: Tensor,
    layer: Layer,
    adapters: Adapters,
    plan: Plan,
    packing: Packing | Callable[[], Packing | None] | None,
    *,
    check_values: bool,
) -> Tensor:
    validation.check_call(x, layer, adapters, values=check_values)
    rows = x if x.ndim == 2 else x.reshape(math.prod(x.shape[:-1]), x.shape[-1])
    if layer.skeleton is not None:
        validation.check_skeleton(layer.skeleton, x, layer, values=check_values and has_values(x))
    chosen, packing = plan_call(rows, layer, adapters, plan, packing)
    adapters = _for_every_row(adapters, x)
    implementation = IMPLEMENTATIONS[chosen]
    if implementation.linear is not None:
        y = implementation.linear(rows, layer, adapters)
    elif packing is not None:
        validation.check_packing(packing, x, layer, values=check_values and has_values(x))
        diagonal = (packing.diagonal + adapters.cores[0]).to(x.dtype)
        y = packed_linear(rows, layer, diagonal, packing.order, packing.inverse)
    else:
        # What a plan does not use, a graph and the backward pass need not keep.
        layer = layer if implementation.gathering else layer._replace(skeleton=None)
        y = operator_linear(rows, layer, adapters, chosen)
    return y if x.ndim == 2 else y.reshape(*x.shape[:-1], y.shape[-1])


def _for_every_row(adapters: Adapters, x: Tensor) -> Adapters:
    """Return wide cores (A, r) or (A, g, b, b) and each row's adapters (T, S)."""
    cores, index, scales = adapters
    # In float32 at least: in bfloat16 the difference that training makes would be rounded away.
    wide = cores.to(torch.float64 if torch.float64 in {cores.dtype, x.dtype} else torch.float32)
    if index is None:
        return Adapters(as_blocks(wide[None]))
    uses, own = (1, index.shape) if scales is None else (index.shape[-1], index.shape[:-1])
    weights = None if scales is None else _spread(scales, own, uses, x)
    return Adapters(as_blocks(wide), _spread(index, own, uses, x), weights)


def _spread(values: Tensor, own: torch.Size, uses: int, x: Tensor) -> Tensor:
    """Return values (*own, uses) as (T, uses).

    They are repeated over the dimensions of x that they lack.
    """
    leading = x.shape[:-1]
    missing = leading[len(own) :]
    if missing:
        values = values.reshape(*own, *(1,) * len(missing), uses).expand(*leading, uses)
    return values.reshape(math.prod(leading), uses)
