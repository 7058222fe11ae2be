"""Register the layer as torch operators.

torch.compile and torch.export see each as one node.

`lowrank_ldu::linear` is every plan with passes (`lowrank_ldu.kernels.plans`), `lowrank_ldu::packed_linear` the packed
plan. Each has a backward operator, and `lowrank_ldu.kernels.differentiation` ties the two together; plans in plain
torch need none. What an operator computes is a function `compute_...` of its own, which eager code calls: the way
through the dispatcher takes 70 us more.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from lowrank_ldu.kernels.call import Adapters, Layer, Needs
from lowrank_ldu.kernels.packed import packed_backward, packed_forward
from lowrank_ldu.kernels.plans import IMPLEMENTATIONS, Passes
from lowrank_ldu.kernels.skeleton import Skeleton

_LAYER = (
    "Tensor weight, {bias}Tensor left, Tensor right, Tensor cores, Tensor? index, Tensor? scales, Tensor? rows, "
    "Tensor? triangle, Tensor? columns, Tensor? column_triangle, bool upper, str plan"
)
_BIAS = "Tensor? bias, "


def _passes(plan: str, index: Tensor | None) -> Passes:
    """Return a plan's passes, or refuse the plan.

    What a direct call could otherwise leave out in silence is refused.
    """
    implementation = IMPLEMENTATIONS.get(plan)
    if implementation is None or implementation.passes is None:
        names = [repr(name) for name, known in IMPLEMENTATIONS.items() if known.passes is not None]
        raise ValueError(f"plan is {plan!r}; accepted: {', '.join(names)}")
    if index is not None and not implementation.rowwise:
        raise ValueError(f"plan is {plan!r} and index is given; accepted: None, as its rows share one weight")
    return implementation.passes()


def _skeleton(
    rows: Tensor | None, triangle: Tensor | None, columns: Tensor | None, column_triangle: Tensor | None
) -> Skeleton | None:
    if rows is None or triangle is None:
        return None
    # The planner has looked at the amplification, and the passes do not.
    return Skeleton(rows, triangle, math.nan, columns, column_triangle)


def compute_linear(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    left: Tensor,
    right: Tensor,
    cores: Tensor,
    index: Tensor | None,
    scales: Tensor | None,
    rows: Tensor | None,
    triangle: Tensor | None,
    columns: Tensor | None,
    column_triangle: Tensor | None,
    upper: bool,  # operators have no keywords
    plan: str,
) -> tuple[Tensor, Tensor]:
    """Return y (T, m) and the projection (T, r).

    For x (T, n) and cores (A, r) or (A, g, b, b).
    """
    skeleton = _skeleton(rows, triangle, columns, column_triangle)
    layer, adapters = Layer(weight, bias, left, right, upper, skeleton), Adapters(cores, index, scales)
    return _passes(plan, index).forward(x, layer, adapters)


linear = torch.library.custom_op(
    "lowrank_ldu::linear",
    compute_linear,
    mutates_args=(),
    schema=f"(Tensor x, {_LAYER.format(bias=_BIAS)}) -> (Tensor, Tensor)",
)


@linear.register_fake
def _(x: Tensor, weight: Tensor, bias: Any, left: Tensor, right: Tensor, *_: Any) -> tuple[Tensor, Tensor]:
    return x.new_empty(x.shape[0], left.shape[0]), x.new_empty(x.shape[0], right.shape[0])


def compute_linear_backward(
    gradient: Tensor,
    projected: Tensor,
    weight: Tensor,
    left: Tensor,
    right: Tensor,
    cores: Tensor,
    index: Tensor | None,
    scales: Tensor | None,
    rows: Tensor | None,
    triangle: Tensor | None,
    columns: Tensor | None,
    column_triangle: Tensor | None,
    upper: bool,
    plan: str,
    need_x: bool,
    need_cores: bool,
    need_scales: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradients of x (T, n), of cores and of scales.

    Each is empty if not needed.
    """
    skeleton = _skeleton(rows, triangle, columns, column_triangle)
    layer, adapters = Layer(weight, None, left, right, upper, skeleton), Adapters(cores, index, scales)
    needs = Needs(need_x, need_cores, need_scales)
    found = _passes(plan, index).backward(gradient, projected, layer, adapters, needs)
    like = gradient, cores, cores if scales is None else scales
    return tuple(tensor.new_empty(0) if made is None else made for made, tensor in zip(found, like, strict=True))  # type: ignore[return-value]


linear_backward = torch.library.custom_op(
    "lowrank_ldu::linear_backward",
    compute_linear_backward,
    mutates_args=(),
    schema=(
        f"(Tensor gradient, Tensor projected, {_LAYER.format(bias='')}, bool need_x, bool need_cores, "
        "bool need_scales) -> (Tensor, Tensor, Tensor)"
    ),
)


@linear_backward.register_fake
def _(
    gradient: Tensor,
    projected: Tensor,
    weight: Tensor,
    left: Tensor,
    right: Tensor,
    cores: Tensor,
    index: Any,
    scales: Tensor | None,
    *rest: Any,
) -> tuple[Tensor, Tensor, Tensor]:
    need_x, need_cores, need_scales = rest[-3:]
    return (
        gradient.new_empty(gradient.shape[0], right.shape[1]) if need_x else gradient.new_empty(0),
        cores.new_empty(cores.shape) if need_cores else cores.new_empty(0),
        cores.new_empty(0) if scales is None else scales.new_empty(scales.shape if need_scales else 0),
    )


def compute_unchanged(order: Tensor, weight: Tensor, packed: Tensor) -> Tensor:
    """Return a packing's order if its weight is unchanged.

    A compiled graph asks at each run.
    """
    if weight.device != packed.device or not torch.equal(weight, packed):
        raise RuntimeError(
            "plan 'packed' cannot run here: the weight has been changed since the packing of the compiled graph was "
            "made; accepted: the weight as it was, or another plan"
        )
    return order.clone()


unchanged = torch.library.custom_op("lowrank_ldu::unchanged", compute_unchanged, mutates_args=())


@unchanged.register_fake
def _(order: Tensor, *_: Any) -> Tensor:
    return torch.empty_like(order)


def compute_packed_linear(
    x: Tensor,
    bias: Tensor | None,
    left: Tensor,
    right: Tensor,
    diagonal: Tensor,
    order: Tensor,
    inverse: Tensor,
) -> tuple[Tensor, Tensor]:
    """Return y (T, m) and the projection (T, r).

    y = x (left diag(diagonal) right)^T + b.
    """
    return packed_forward(x, bias, left, right, diagonal, order, inverse)


packed_linear = torch.library.custom_op("lowrank_ldu::packed_linear", compute_packed_linear, mutates_args=())


@packed_linear.register_fake
def _(x: Tensor, bias: Any, left: Tensor, right: Tensor, *_: Any) -> tuple[Tensor, Tensor]:
    return x.new_empty(x.shape[0], left.shape[0]), x.new_empty(x.shape[0], right.shape[0])


def compute_packed_linear_backward(
    gradient: Tensor,
    projected: Tensor,
    left: Tensor,
    right: Tensor,
    diagonal: Tensor,
    order: Tensor,
    need_x: bool,
) -> tuple[Tensor, Tensor]:
    """Return dx (T, n) and the diagonal's gradient (r,).

    dx is empty if not needed.
    """
    dx, total = packed_backward(gradient, projected, left, right, diagonal, order, need_x=need_x)
    return gradient.new_empty(0) if dx is None else dx, total


packed_linear_backward = torch.library.custom_op(
    "lowrank_ldu::packed_linear_backward", compute_packed_linear_backward, mutates_args=()
)


@packed_linear_backward.register_fake
def _(
    gradient: Tensor,
    projected: Tensor,
    left: Tensor,
    right: Tensor,
    diagonal: Tensor,
    order: Tensor,
    need_x: bool,
) -> tuple[Tensor, Tensor]:
    shape = (gradient.shape[0], right.shape[1]) if need_x else (0,)
    return gradient.new_empty(shape), torch.empty_like(diagonal)
