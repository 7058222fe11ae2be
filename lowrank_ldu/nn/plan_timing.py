"""Time the plans of one layer."""

from __future__ import annotations

import random
import time
from statistics import median
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from lowrank_ldu.kernels import PLANS

if TYPE_CHECKING:
    from lowrank_ldu.kernels import Plan, Problem
    from lowrank_ldu.nn.host import AdapterHost

# Of each problem, as far as the rounds allow.
_SECONDS = 0.5
_LEAST, _MOST = 3, 50


def plan_seconds(
    layer: AdapterHost, args: tuple[Any, ...], kwargs: dict[str, Any], problem: Problem
) -> dict[str, float]:
    """Return the median seconds of every plan that can run.

    All take turns, in an order drawn anew in each round, with a call before the first.

    Parameters
    ----------
    layer : LDULayer or PEFT's LolduLayer
        Its plan is the same afterwards.
    args, kwargs
        Of its call. Neither they nor the layer's parameters get gradients.
    problem : Problem
        For what there is a gradient of.
    """
    args, kwargs = tuple(map(_apart, args)), {name: _apart(value) for name, value in kwargs.items()}
    wanted = [value for value in (*args, *kwargs.values()) if isinstance(value, Tensor) and value.requires_grad]
    wanted += [parameter for parameter in layer.parameters() if parameter.requires_grad]
    trained = (problem.x_gradient or problem.delta_gradient) and bool(wanted)
    asked = layer.plan

    def step(plan: Plan) -> float:
        layer.plan = plan
        start = time.perf_counter()
        y = layer(*args, **kwargs)
        if trained:
            # torch has no types for the return value.
            torch.autograd.grad(y, wanted, torch.ones_like(y), allow_unused=True)
        if problem.device.type == "cuda":
            torch.cuda.synchronize(problem.device)
        return time.perf_counter() - start

    try:
        taken: dict[Plan, list[float]] = {}
        for plan in PLANS:
            if plan == "auto" or (plan == "triton" and problem.device.type == "cpu"):
                continue  # interpreted, it takes minutes
            try:
                step(plan)
            except RuntimeError:  # it cannot run here; the choice says why
                continue
            taken[plan] = []
        order, draw, end = list(taken), random.Random(0), time.perf_counter() + _SECONDS  # noqa: S311
        for rounds in range(_MOST):
            if rounds >= _LEAST and time.perf_counter() > end:
                break
            draw.shuffle(order)
            for plan in order:
                taken[plan].append(step(plan))
    finally:
        layer.plan = asked
    return {plan: median(seconds) for plan, seconds in taken.items()}


def _apart(value: Any) -> Any:
    """Return a tensor without the graph that it came from."""
    return value.detach().requires_grad_(value.requires_grad) if isinstance(value, Tensor) else value
