"""The layer's output: the base's product and the update in one, where nothing of the base layer is passed by."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import nn

from lowrank_ldu.kernels import PLANS, Plan, Problem, choose_plan, ldu_linear, ldu_linear_multi
from lowrank_ldu.kernels.surroundings import autocast_dtype, transformed
from lowrank_ldu.nn.base_call import Update, has_hooks, output_with_updates
from lowrank_ldu.nn.host import hosts
from lowrank_ldu.nn.kinds import LinearKind, TransposedLinearKind
from lowrank_ldu.nn.tracing import is_exporting, is_fake
from lowrank_ldu.validation import check_choice

if TYPE_CHECKING:
    from torch import Tensor

    from lowrank_ldu.kernels import Packing
    from lowrank_ldu.nn.factors import Factors
    from lowrank_ldu.nn.host import AdapterHost
    from lowrank_ldu.nn.kinds import LayerKind

_PLAIN_TENSORS = (torch.Tensor, nn.Parameter)


def set_plan(model: nn.Module, plan: Plan) -> int:
    """Choose how the LoLDU layers of a model compute, and return how many there are.

    Parameters
    ----------
    model : nn.Module
        With layers of `inject`, of `LoLDULayer`, or of PEFT.
    plan : str
        One of `lowrank_ldu.kernels.PLANS`; "auto" at first. The choice is the process's and is not saved.

    Raises
    ------
    ValueError
        There is no such plan, or the model has no such layer. Whether a plan can run is seen when a layer is called,
        which raises if it cannot.

    Examples
    --------
    >>> from lowrank_ldu.nn import LoLDULayer
    >>> set_plan(nn.Sequential(LoLDULayer(nn.Linear(6, 4), rank=2)), "reference")
    1
    """
    check_choice(plan, "plan", PLANS)
    layers = [layer for _, layer in hosts(model)]
    if not layers:
        raise ValueError(
            f"the model ({type(model).__name__}) has no LoLDU layer; accepted: one that inject or PEFT put some into"
        )
    for layer in layers:
        layer.plan = plan
    return len(layers)


def layer_output(
    base_layer: nn.Module,
    kind: type[LayerKind],
    x: Tensor,
    factors: Factors,
    delta: Tensor,
    *,
    plan: Plan = "auto",
    index: Tensor | None = None,
    args: tuple[Any, ...] = (),
    kwargs: dict[str, Any] | None = None,
) -> Tensor:
    """Return what a base layer and the update P L diag(delta) U make of x.

    Parameters
    ----------
    base_layer : nn.Module
    kind : LayerKind
        Its kind.
    x : Tensor
        Its input.
    factors : Factors
    delta : Tensor, shape (r,), or (A, r) with `index`
    plan : str
        One of `PLANS`.
    index : Tensor, shape (B,), optional
        The row of delta that each row of the batch uses; the last row is zero, for rows without an update.
    args, kwargs
        Further arguments of the base layer.

    Raises
    ------
    RuntimeError
        The plan that was asked for cannot compute this layer.
    """
    further = "the base layer takes further arguments" if args or kwargs else None
    reason = further or _passed_by(base_layer, kind, x, factors)
    if reason is not None:
        if plan not in {"auto", "reference"}:
            raise RuntimeError(f"plan {plan!r} cannot run here: {reason}")
        y: Tensor = output_with_updates(base_layer, base_layer, kind, [Update(factors, delta, index)], x, args, kwargs)
        return y
    if plan == "auto" and is_exporting():
        plan = "reference"  # of torch's own operators, which every runtime and ONNX know
    linear = cast("nn.Linear", base_layer)
    weight, left, right = kind.as_matrix(linear.weight), factors.left, factors.right
    bias: Tensor | None = linear.bias
    arguments = (x, weight, bias, left, right, delta * factors.scale)
    # Values are not checked: that would wait for a GPU, and a delta that is not finite shows in the output.
    options: dict[str, Any] = {"plan": plan, "upper": factors.upper, "check_values": False}
    if index is not None:
        return ldu_linear_multi(*arguments, index, **options)
    packing = None if autocast_dtype(x.device.type) is not None else _packing(weight, x, factors, delta, plan)
    return ldu_linear(*arguments, packing=packing, **options)


def planned(layer: AdapterHost, x: Tensor) -> str:
    """Return the plan that a layer takes for x under the present gradient mode; "reference" if nothing can be fused.

    Parameters
    ----------
    layer : LoLDULayer or PEFT's LolduLayer
        With one adapter.
    x : Tensor

    Raises
    ------
    RuntimeError
        The plan that was asked for cannot run.
    """
    diagonal = next(iter(layer.diagonals()))
    base_layer, kind = layer.base_layer, layer.kind
    if _passed_by(base_layer, kind, x, diagonal.factors) is not None:
        return "reference"
    weight, factors = kind.as_matrix(cast("Tensor", base_layer.weight)), diagonal.factors
    packing = _packing(weight, x, factors, diagonal.delta, layer.plan)
    return choose_plan(_problem(weight, x, factors, diagonal.delta, packing=packing is not None), layer.plan).plan


def _problem(weight: Tensor, x: Tensor, factors: Factors, delta: Tensor, *, packing: bool) -> Problem:
    recorded = torch.is_grad_enabled()
    return Problem(
        tokens=math.prod(x.shape[:-1]),
        out_features=weight.shape[0],
        in_features=weight.shape[1],
        rank=factors.left.shape[1],
        dtype=x.dtype,
        device=x.device,
        x_gradient=recorded and x.requires_grad,
        delta_gradient=recorded and delta.requires_grad,
        upper=factors.upper,
        packing=packing,
    )


def _packing(weight: Tensor, x: Tensor, factors: Factors, delta: Tensor, plan: Plan) -> Packing | None:
    """Return the packing if the packed plan is asked for, or would be the cheapest: it is made only then."""
    if plan not in {"auto", "packed"} or not factors.packable:
        return None
    if plan == "auto" and torch.compiler.is_compiling():
        return None  # nothing in the graph would notice that the weight has been changed
    if plan == "auto" and choose_plan(_problem(weight, x, factors, delta, packing=True)).plan != "packed":
        return None
    return factors.packing(weight)


def _passed_by(base_layer: nn.Module, kind: type[LayerKind], x: Tensor, factors: Factors) -> str | None:
    """Return what of the base layer a fused product would pass by, None if nothing."""
    if kind not in {LinearKind, TransposedLinearKind}:
        return f"the layer is a {type(base_layer).__name__}, and fused products are of linear layers"
    plain = type(base_layer) is nn.Linear if kind is LinearKind else type(base_layer).__name__ == "Conv1D"
    if not plain or "forward" in vars(base_layer) or "parametrizations" in base_layer._modules:  # noqa: SLF001
        return f"the base layer ({type(base_layer).__name__}) has a forward of its own"
    if has_hooks(base_layer):
        return "the base layer has hooks, which a fused product would not call"
    return _not_plain(cast("nn.Linear", base_layer), x, factors)


def _not_plain(base_layer: nn.Linear, x: Tensor, factors: Factors) -> str | None:
    """Return which tensor a fused product does not take, None if it takes all of them."""
    weight: Tensor = base_layer.weight
    tensors = (weight,) if base_layer.bias is None else (weight, base_layer.bias)
    if any(type(tensor) not in _PLAIN_TENSORS and not is_fake(tensor) for tensor in tensors):
        return f"the base layer's weight is a {type(weight).__name__}"
    if weight.requires_grad:
        return "the base layer's weight is trained"
    automatic = autocast_dtype(x.device.type) is not None
    if not x.is_floating_point() or factors.right.dtype != weight.dtype or not (automatic or x.dtype == weight.dtype):
        return "the input, the weight and the factors have different dtypes"
    if torch.jit.is_tracing():  # type: ignore[no-untyped-call, attr-defined]
        return "torch.jit traces the layer"
    if transformed():
        return "a transform of torch.func or forward-mode differentiation is under way"
    return None
