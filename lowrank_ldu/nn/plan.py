"""Set and return the plan of layers."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lowrank_ldu.kernels import PLANS, Plan
from lowrank_ldu.kernels.planner import plan_call
from lowrank_ldu.nn.forward import bypassed, kernel_call
from lowrank_ldu.nn.host import hosts
from lowrank_ldu.validation import check_choice

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor, nn

    from lowrank_ldu.nn.host import AdapterHost
    from lowrank_ldu.nn.kinds import LayerKind


def set_plan(model: nn.Module, plan: Plan) -> int:
    """Set the plan of a model's LoLDU layers.

    Returns the number of these layers.

    Parameters
    ----------
    model : nn.Module
        With layers of `inject`, of `LDULayer`, or of PEFT.
    plan : str
        One of `lowrank_ldu.kernels.PLANS`; "auto" at first. The choice is the process's and is not saved.

    Raises
    ------
    ValueError
        There is no such plan, or the model has no such layer. Whether a plan can run is seen when a layer is called,
        which raises if it cannot.

    Examples
    --------
    >>> from torch import nn
    >>> from lowrank_ldu.nn import LDULayer
    >>> set_plan(nn.Sequential(LDULayer(nn.Linear(6, 4), rank=2)), "reference")
    1
    """
    check_choice(plan, "plan", PLANS)
    layers = dict(hosts(model))
    check_adapted(layers, model)
    for layer in layers.values():
        layer.plan = plan
    return len(layers)


def check_adapted(layers: Mapping[str, AdapterHost], model: nn.Module) -> None:
    """Raise ValueError if a model has no adapted layer."""
    if not layers:
        raise ValueError(
            f"the model ({type(model).__name__}) has no LoLDU layer; accepted: one that inject or PEFT put some into"
        )


def planned(layer: AdapterHost, x: Tensor) -> str:
    """Return the plan of a layer for x.

    It depends on the present gradient mode, and is "reference" where the base layer has to be called.

    Parameters
    ----------
    layer : LDULayer or PEFT's LolduLayer
        With one adapter.
    x : Tensor

    Raises
    ------
    RuntimeError
        The plan that was asked for cannot run.
    """
    held = next(iter(layer.held_adapters()))
    rows = x.reshape(-1, x.shape[-1])
    base_layer: nn.Module = layer.base_layer
    kind: type[LayerKind] = layer.kind
    if bypassed(base_layer, kind, x, held.factors) is not None:
        return "reference"
    frozen, adapters, packing = kernel_call(base_layer, kind, held.factors, held.delta, plan=layer.plan, rows=len(rows))
    return plan_call(rows, frozen, adapters, layer.plan, packing)[0]
