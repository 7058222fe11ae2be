"""Give the operators their gradients.

`operator_linear` and `packed_linear` go through functions of autograd, and under torch.compile through the operators
themselves, which are differentiable by the same rules: eagerly a registered rule takes up to 1 ms longer for each layer
and step (T = 2048, 768 x 768), and Dynamo warns of functions of autograd. Those call what the operators compute; plans
that launch kernels stay with the operators, since kernels cannot be launched on fake tensors and operators know what to
do.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from lowrank_ldu.kernels import operators
from lowrank_ldu.kernels.plans import IMPLEMENTATIONS, Plan
from lowrank_ldu.kernels.torch_modes import without_autocast

if TYPE_CHECKING:
    from lowrank_ldu.kernels.call import Adapters, Layer


def operator_linear(x: Tensor, layer: Layer, adapters: Adapters, plan: Plan) -> Tensor:
    """Return y of `lowrank_ldu::linear`, with gradients of x, bias, cores and scales."""
    cores, index, scales = adapters
    if IMPLEMENTATIONS[plan].launching:
        # The kernels compute in float32 and no wider.
        cores, scales = cores.float(), None if scales is None else scales.float()
    weight, bias, left, right, upper, skeleton = layer
    rows = (None,) * 4 if skeleton is None else (*skeleton[:2], *skeleton[3:])
    index = None if index is None else index.contiguous()
    scales = None if scales is None else scales.contiguous()
    arguments = (x, weight, bias, left, right, cores.contiguous(), index, scales, *rows, upper, plan)
    if torch.compiler.is_compiling():
        return operators.linear(*arguments)[0]  # type: ignore[no-any-return]
    return _Linear.apply(*arguments)  # type: ignore[no-any-return,no-untyped-call]


def packed_linear(x: Tensor, layer: Layer, diagonal: Tensor, order: Tensor, inverse: Tensor) -> Tensor:
    """Return y of `lowrank_ldu::packed_linear`, with gradients of x, bias and the diagonal."""
    arguments = (x, layer.bias, layer.left, layer.right, diagonal, order, inverse)
    if torch.compiler.is_compiling():
        return operators.packed_linear(*arguments)[0]  # type: ignore[no-any-return]
    return _PackedLinear.apply(*arguments)  # type: ignore[no-any-return,no-untyped-call]


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    _, weight, _, left, right, *adapters, ctx.upper, ctx.plan = inputs
    # Saved: the projection, T x r, and neither x nor y.
    ctx.save_for_backward(output[1], weight, left, right, *adapters)
    ctx.set_materialize_grads(False)


def _backward(
    ctx: Any, gradient: Tensor | None, _: Tensor | None = None, backward: Any = operators.linear_backward
) -> tuple[Any, ...]:
    if gradient is None:
        return (None,) * 14
    projected, *constant = ctx.saved_tensors
    need_x, _, need_bias, _, _, need_cores, _, need_scales, *_ = ctx.needs_input_grad
    needs = (need_x, need_cores, need_scales)
    found = backward(gradient.contiguous(), projected, *constant, ctx.upper, ctx.plan, *needs)
    dx, to_cores, to_scales = (made if needed else None for made, needed in zip(found, needs, strict=True))
    to_bias = gradient.sum(dim=0) if need_bias else None
    return dx, None, to_bias, None, None, to_cores, None, to_scales, *(None,) * 6


def _keep_packed(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    _, _, left, right, diagonal, order, _ = inputs
    ctx.save_for_backward(output[1], left, right, diagonal, order)
    ctx.set_materialize_grads(False)


def _backward_packed(
    ctx: Any, gradient: Tensor | None, _: Tensor | None = None, backward: Any = operators.packed_linear_backward
) -> tuple[Any, ...]:
    if gradient is None:
        return (None,) * 7
    need_x, need_bias, _, _, need_diagonal, *_ = ctx.needs_input_grad
    dx, total = backward(gradient.contiguous(), *ctx.saved_tensors, need_x)
    to_bias = gradient.sum(dim=0) if need_bias else None
    return dx if need_x else None, to_bias, None, None, total if need_diagonal else None, None, None


operators.linear.register_autograd(_backward, setup_context=_keep)
operators.packed_linear.register_autograd(_backward_packed, setup_context=_keep_packed)


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, *inputs: Any) -> Tensor:
        compute = operators.linear if IMPLEMENTATIONS[inputs[-1]].launching else operators.compute_linear
        output = compute(*inputs)
        _keep(ctx, inputs, output)
        return output[0]

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor | None) -> tuple[Any, ...]:
        launching = IMPLEMENTATIONS[ctx.plan].launching
        backward = operators.linear_backward if launching else operators.compute_linear_backward
        with without_autocast("cpu" if gradient is None else gradient.device.type):
            return _backward(ctx, gradient, backward=backward)


class _PackedLinear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, *inputs: Any) -> Tensor:
        output = operators.compute_packed_linear(*inputs)
        _keep_packed(ctx, inputs, output)
        return output[0]

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor | None) -> tuple[Any, ...]:
        with without_autocast("cpu" if gradient is None else gradient.device.type):
            return _backward_packed(ctx, gradient, backward=operators.compute_packed_linear_backward)
