"""Compute the output of a base layer with updates of its weight.

Where a fused product would leave out nothing of the base layer, its product and the update are one call of
`lowrank_ldu.kernels`. Elsewhere the base layer is called, with its hooks and its own forward.
"""

from __future__ import annotations

import math
import threading
from functools import partial
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn
from torch.nn.modules import module as torch_module

from lowrank_ldu.kernels.api import compute
from lowrank_ldu.kernels.call import Adapters, Layer
from lowrank_ldu.kernels.torch_modes import autocast_dtype, is_exporting, is_fake, known_true, transformed
from lowrank_ldu.nn.cores import scaled_core
from lowrank_ldu.nn.gathering import gathered_output
from lowrank_ldu.nn.kinds import LinearKind, TransposedLinearKind
from lowrank_ldu.nn.kinds.own_forward import check_forward, own_forward
from lowrank_ldu.nn.quantized import is_quantized
from lowrank_ldu.nn.update import Update, summed_weight, updated_matrix, updated_output

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from lowrank_ldu.kernels import Packing, Plan
    from lowrank_ldu.nn.factors import Factors
    from lowrank_ldu.nn.kinds import LayerKind

# For fewer rows the checksum of what is gathered takes longer than the projection that gathering saves.
LEAST_GATHERED = 1024

_PLAIN_TENSORS = (torch.Tensor, nn.Parameter)

_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
# This lock is held while a layer is called with another weight or forward than its own: threads may share the layer.
# There is one lock for all layers, since a layer has to be copied and pickled.
_LOCK = threading.RLock()


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
    """Return the base layer's output for x with one update.

    Parameters
    ----------
    base_layer : nn.Module
    kind : LayerKind
        Its kind.
    x : Tensor
        Its input.
    factors : Factors
    delta : Tensor
        The core, (r,) or (g, b, b); A of them with `index`.
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
    reason = further or bypassed(base_layer, kind, x, factors)
    if reason is not None:
        if (
            plan == "skeleton"
            and further is None
            and kind.linear
            and is_quantized(base_layer)
            and not has_hooks(base_layer)
        ):
            return gathered_output(base_layer, x, factors, delta if index is None else delta[index])
        if plan not in {"auto", "reference"}:
            raise RuntimeError(f"plan {plan!r} cannot run here: {reason}")
        y: Tensor = output_with_updates(base_layer, base_layer, kind, [Update(factors, delta, index)], x, args, kwargs)
        return y
    if plan == "auto" and is_exporting():
        plan = "reference"  # of torch's own operators, which every runtime and ONNX know
    rows = math.prod(x.shape[:-1])
    layer, adapters, packing = kernel_call(base_layer, kind, factors, delta, plan=plan, index=index, rows=rows)
    # Values are not checked: that would wait for a GPU, and a delta that is not finite shows in the output.
    return compute(x, layer, adapters, plan, packing, check_values=False)


def kernel_call(
    base_layer: nn.Module,
    kind: type[LayerKind],
    factors: Factors,
    delta: Tensor,
    *,
    plan: Plan,
    index: Tensor | None = None,
    rows: int = 0,
) -> tuple[Layer, Adapters, Callable[[], Packing | None] | None]:
    """Return the arguments of a kernel call.

    They are the layer, its adapters, and the function that makes its packing. "auto" gathers from LEAST_GATHERED rows
    on, "hybrid" where there are as many rows as terms.
    """
    linear = cast("nn.Linear", base_layer)
    weight = kind.as_matrix(linear.weight)
    least = max(LEAST_GATHERED if plan == "auto" else 0, factors.left.shape[1])
    many = known_true(rows >= least)
    # The checksum of the gathered rows would wait for a GPU.
    gathers = plan == "skeleton" or (plan in {"auto", "hybrid"} and many and weight.device.type == "cpu")
    skeleton = factors.skeleton(weight) if gathers else None
    if plan == "skeleton" and skeleton is None:
        raise RuntimeError(f"plan {plan!r} cannot run here: {factors.obstacle_to_gathering()}")
    layer = Layer(weight, linear.bias, factors.left, factors.right, factors.upper, skeleton)
    # In a graph nothing would notice that the weight has been changed: "auto" leaves packing out there.
    packing = None if plan == "auto" and torch.compiler.is_compiling() else partial(factors.packing, weight)
    return layer, Adapters(scaled_core(delta, factors.scale), index), packing


def bypassed(base_layer: nn.Module, kind: type[LayerKind], x: Tensor, factors: Factors) -> str | None:
    """Return the reason why a fused product would not do, or None.

    The reason is the part of the base layer that it would leave out.
    """
    if kind not in {LinearKind, TransposedLinearKind}:
        return f"the layer is a {type(base_layer).__name__}, and fused products are of linear layers"
    plain = type(base_layer) is nn.Linear if kind is LinearKind else type(base_layer).__name__ == "Conv1D"
    if not plain or "forward" in vars(base_layer) or "parametrizations" in base_layer._modules:  # noqa: SLF001
        return f"the base layer ({type(base_layer).__name__}) has a forward of its own"
    if has_hooks(base_layer):
        return "the base layer has hooks, which a fused product would not call"
    return _not_plain(cast("nn.Linear", base_layer), x, factors)


def _not_plain(base_layer: nn.Linear, x: Tensor, factors: Factors) -> str | None:
    """Return the reason why no fused product takes the tensors, or None."""
    weight: Tensor = base_layer.weight
    tensors = (weight,) if base_layer.bias is None else (weight, base_layer.bias)
    if any(type(tensor) not in _PLAIN_TENSORS and not is_fake(tensor) for tensor in tensors):
        return f"the base layer's weight is a {type(weight).__name__}"
    if weight.requires_grad:
        return "the base layer's weight is trained"
    alike = x.dtype == weight.dtype or autocast_dtype(x.device.type) is not None
    if not (x.is_floating_point() and factors.right.dtype == weight.dtype and alike):
        return "the input, the weight and the factors have different dtypes"
    if torch.jit.is_tracing():  # type: ignore[no-untyped-call, attr-defined]
        return "torch.jit traces the layer"
    if transformed():
        return "a transform of torch.func or forward-mode differentiation is under way"
    return None


def has_hooks(module: nn.Module) -> bool:
    """Return whether calling a module runs more than its forward."""
    return any(getattr(module, name) for name in _HOOKS) or torch_module._has_any_global_hook()  # type: ignore[no-untyped-call]  # noqa: SLF001


def first_argument(module: nn.Module, kwargs: dict[str, Any]) -> Any:
    """Take a layer's input out of its keyword arguments.

    Raises
    ------
    TypeError
        It is not among them.
    """
    code = getattr(getattr(type(module).forward, "__wrapped__", type(module).forward), "__code__", None)
    name = code.co_varnames[1] if code is not None and code.co_argcount > 1 else "input"
    if name not in kwargs and "x" in kwargs:
        name = "x"
    if name not in kwargs:
        raise TypeError(f"{type(module).__name__} was called without its input; accepted: one tensor, or {name}=tensor")
    return kwargs.pop(name)


def output_with_updates(  # noqa: PLR0917  # the call's own arguments come last
    called: nn.Module,
    base_layer: nn.Module,
    kind: type[LayerKind],
    updates: Sequence[Update],
    x: Tensor,
    args: tuple[Any, ...] = (),
    kwargs: dict[str, Any] | None = None,
) -> Any:
    """Return a layer's output with updates, by calling the layer.

    A layer that computes by the formula of its kind adds the product of the update inside of its hooks. These change
    the input and the output of the update, too. A layer with a forward of its own is called with the summed weight,
    (m, n) numbers a call.

    Parameters
    ----------
    called : nn.Module
        What is called: the base layer, or another method's layer around it.
    base_layer : nn.Module
        Whose weight the updates are of.
    kind : LayerKind
        Its kind.
    updates : sequence of Update
    x : Tensor
        First argument.
    args, kwargs
        Further arguments.

    Raises
    ------
    RuntimeError
        The layer has a forward of its own, and its weight is not in memory or is written to in the call, or its output
        has not one row for each row of `Update.choice`.
    ValueError
        As for `check_forward`.
    """
    kwargs = kwargs or {}
    if not updates:
        return called(x, *args, **kwargs)
    if own_forward(base_layer):
        if not torch.compiler.is_compiling():
            check_forward(base_layer)
        return _locked(lambda: _own_output(called, base_layer, kind, updates, (x, *args), kwargs))
    if has_hooks(base_layer):
        return _locked(lambda: _hooked_output(called, base_layer, kind, updates, (x, *args), kwargs))
    return _added(base_layer, kind, x, called(x, *args, **kwargs), updates)


def _added(base_layer: nn.Module, kind: type[LayerKind], x: Tensor, y: Tensor, updates: Sequence[Update]) -> Tensor:
    for update in updates:
        y = updated_output(base_layer, kind, x, y, update.factors, update.rows)
    return y


def _locked(call: Callable[[], Any]) -> Any:
    if torch.compiler.is_compiling():
        return call()
    with _LOCK:
        return call()


def _hooked_output(  # noqa: PLR0917
    called: nn.Module,
    base_layer: nn.Module,
    kind: type[LayerKind],
    updates: Sequence[Update],
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
) -> Any:
    """Call the layer with a forward that adds the updates.

    The forward runs between the layer's hooks.
    """
    own, state = base_layer.forward, vars(base_layer)
    held = state.get("forward")

    def forward(*args: Any, **kwargs: Any) -> Any:
        x = args[0] if args else first_argument(base_layer, dict(kwargs))
        return _added(base_layer, kind, x, own(*args, **kwargs), updates)

    state["forward"] = forward
    try:
        return called(*args, **kwargs)
    finally:
        if held is None:
            del state["forward"]
        else:
            state["forward"] = held


def _own_output(  # noqa: PLR0917
    called: nn.Module,
    base_layer: nn.Module,
    kind: type[LayerKind],
    updates: Sequence[Update],
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
) -> Any:
    weight = cast("Tensor", base_layer.weight)
    if weight.device.type == "meta" and updates[0].delta.device.type != "meta":
        raise RuntimeError(
            f"the base layer ({type(base_layer).__name__}) has a forward of its own and its weight is not in memory "
            "(meta device); accepted: a layer that is not offloaded"
        )

    def output(summands: list[tuple[Factors, Tensor]]) -> Any:
        with torch.autocast(weight.device.type, enabled=False):
            matrices = [updated_matrix(factors, delta) for factors, delta in summands]
            total = summed_weight(weight, kind, matrices)
        return _call_with_weight(called, base_layer, total, args, kwargs)

    if all(update.choice is None for update in updates):
        return output([(update.factors, update.delta) for update in updates])
    y = called(*args, **kwargs)
    for update in updates:
        choice = cast("Tensor", update.choice)
        if not isinstance(y, Tensor) or y.shape[:1] != choice.shape:
            raise RuntimeError(
                f"the base layer ({type(base_layer).__name__}) has a forward of its own, whose output has not one row "
                f"for each of the {len(choice)} rows of the batch; accepted: one adapter for all of them"
            )
        for row, delta in enumerate(update.delta[:-1]):
            chosen = (choice == row).reshape(-1, *(1,) * (y.ndim - 1))
            y = torch.where(chosen, output([(update.factors, delta)]), y)
    return y


def _call_with_weight(
    called: nn.Module, base_layer: nn.Module, weight: Tensor, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Any:
    # A replica of nn.DataParallel keeps its tensors among its attributes.
    holder: dict[str, Any] = base_layer._parameters  # noqa: SLF001
    if "weight" not in holder:
        holder = vars(base_layer)
    held, compiling = holder["weight"], torch.compiler.is_compiling()
    version = 0 if compiling or weight.is_inference() else weight._version  # noqa: SLF001
    holder["weight"] = weight
    try:
        y = called(*args, **kwargs)
        kept = holder.get("weight") is weight and (compiling or weight.is_inference() or weight._version == version)  # noqa: SLF001
    finally:
        holder["weight"] = held
    if not kept:
        raise RuntimeError(
            f"the base layer ({type(base_layer).__name__}) has a forward of its own, which writes to its weight; "
            "accepted: a layer whose weight is constant"
        )
    return y
