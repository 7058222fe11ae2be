"""The public functions: they validate, choose a plan and hand over to it."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import torch
from torch._subclasses.fake_tensor import is_fake

from lowrank_ldu.kernels import validation
from lowrank_ldu.kernels.differentiation import fused_linear, packed_linear
from lowrank_ldu.kernels.materialized import materialized_linear
from lowrank_ldu.kernels.planner import Plan, Problem, choose_plan
from lowrank_ldu.kernels.reference import reference_linear
from lowrank_ldu.kernels.torch_modes import autocast_dtype, cast, transformed, without_autocast

if TYPE_CHECKING:
    from torch import Tensor

    from lowrank_ldu.kernels.packed import Packing


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
    upper: bool = False,
    check_values: bool = True,
) -> Tensor:
    r"""Return x W^T + b + ((x right^T) * delta) left^T: the frozen layer and its low-rank update in one.

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
    delta : Tensor, shape (r,)
        `sigma z - sigma_0 z_ref`, of any floating dtype; used in float32 at least.
    plan : str
        How it is computed, one of `PLANS`: "auto" takes the cheapest by the model of `lowrank_ldu.kernels.planner`.
        "reference": plain torch, with gradients of everything and of any order. "factored": the same products,
        accumulated in place; keeps the projection x right^T (T r values) for the backward pass and not x.
        "hybrid": rows go through the materialised weight, made anew on the way back; the gradient of delta through the
        thin products, and keeps what "factored" keeps.
        "materialized": W + left diag(delta) right is made once for all rows. "packed": triangular products of the
        factors alone, where they are the whole weight. "triton": fused kernels, on a GPU.
    packing : Packing, optional
        Of this weight, which plan "packed" needs: `pack`.
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
    "reference" and "materialized" also of weight, left and right. With delta = 0 the plans reference, factored, hybrid
    and materialized return the bits of the frozen layer's output; packed and triton sum in another order. Equation (9)
    of arXiv 2410.13618 with RSM x and DSM x taken together.

    Examples
    --------
    >>> weight, left, right = torch.eye(2), torch.tensor([[1.0], [3.0]]), torch.tensor([[1.0, 1.0]])
    >>> ldu_linear(torch.tensor([1.0, 2.0]), weight, None, left, right, torch.ones(1))
    tensor([ 4., 11.])
    """
    dtype = autocast_dtype(x.device.type) if isinstance(x, torch.Tensor) else None
    if dtype is not None:
        # What autocast does to nn.Linear, to everything that the layer's product takes in its place.
        x, weight, left, right = (cast(tensor, dtype) for tensor in (x, weight, left, right))
        bias = None if bias is None else cast(bias, dtype)
        with without_autocast(x.device.type):
            return ldu_linear(
                x, weight, bias, left, right, delta, plan=plan, packing=packing, upper=upper, check_values=check_values
            )
    validation.check_layer(x, weight, bias, left, right)
    check_values = check_values and _has_values(x)
    validation.check_deltas("delta", delta, x, (left.shape[1],), values=check_values)
    if upper and check_values:
        validation.check_upper(right)
    chosen = choose_plan(_problem(x, weight, left, right, delta, upper=upper, packing=packing), plan).plan
    rows = x.reshape(math.prod(x.shape[:-1]), x.shape[-1])
    # In float32 at least: in bfloat16 the difference that training makes would be rounded away.
    wide = delta.to(torch.promote_types(torch.promote_types(delta.dtype, x.dtype), torch.float32))
    if chosen == "materialized":
        y = materialized_linear(rows, weight, bias, left, right, wide)
    elif chosen == "packed":
        assert packing is not None  # noqa: S101  # or it would not have been chosen
        validation.check_packing(packing, weight, left, right, x, values=check_values)
        diagonal = (packing.diagonal + wide).to(x.dtype)
        y = packed_linear(rows, bias, left, right, diagonal, packing.order, packing.inverse)
    else:
        y = _rowwise(chosen, rows, weight, bias, left, right, wide[None], None, None, upper=upper)
    return y.reshape(*x.shape[:-1], len(weight))


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
    upper: bool = False,
    check_values: bool = True,
) -> Tensor:
    """Return the layer's output for rows that use different adapters, or mixes of several.

    The factors are the base's, so that adapters differ in their diagonal only: whatever their number, a row costs what
    it costs with one.

    Parameters
    ----------
    x : Tensor, shape (..., n)
    weight, bias, left, right, plan, upper, check_values
        As for `ldu_linear`.
    deltas : Tensor, shape (A, r)
        Diagonals of A adapters.
    adapter_index : Tensor, int64 or int32
        The adapter of each row: of x's leading dimensions, or of the first of them (one adapter for each sequence).
        With `scales` it has a further dimension for the S adapters of a row.
    scales : Tensor, shape of adapter_index, optional
        Weights of a row's adapters: it is computed with the diagonal sum_s scales[s] deltas[adapter_index[s]].

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
    dtype = autocast_dtype(x.device.type) if isinstance(x, torch.Tensor) else None
    if dtype is not None:
        x, weight, left, right = (cast(tensor, dtype) for tensor in (x, weight, left, right))
        bias = None if bias is None else cast(bias, dtype)
        options: dict[str, Any] = {"scales": scales, "plan": plan, "upper": upper, "check_values": check_values}
        with without_autocast(x.device.type):
            return ldu_linear_multi(x, weight, bias, left, right, deltas, adapter_index, **options)
    validation.check_layer(x, weight, bias, left, right)
    check_values = check_values and _has_values(x)
    validation.check_deltas("deltas", deltas, x, ("A", left.shape[1]), values=check_values)
    validation.check_adapters(adapter_index, scales, x, len(deltas), values=check_values)
    if upper and check_values:
        validation.check_upper(right)
    problem = _problem(x, weight, left, right, deltas, upper=upper, rowwise=True)
    chosen = choose_plan(problem, plan).plan
    wide = deltas.to(torch.promote_types(torch.promote_types(deltas.dtype, x.dtype), torch.float32))
    uses = 1 if scales is None else adapter_index.shape[-1]
    rows = x.reshape(math.prod(x.shape[:-1]), x.shape[-1])
    index = _for_every_row(adapter_index, x, uses, mixed=scales is not None)
    weights = None if scales is None else _for_every_row(scales, x, uses, mixed=True)
    y = _rowwise(chosen, rows, weight, bias, left, right, wide, index, weights, upper=upper)
    return y.reshape(*x.shape[:-1], len(weight))


def _has_values(x: Tensor) -> bool:
    """Whether values can be looked at: not while a graph is being made, nor without memory behind the tensors."""
    return not (torch.compiler.is_compiling() or x.device.type == "meta" or is_fake(x))


def _for_every_row(values: Tensor, x: Tensor, uses: int, *, mixed: bool) -> Tensor:
    """Return (T, uses) of values that may be there for the first dimensions of x only."""
    own = values.shape[:-1] if mixed else values.shape
    missing = x.shape[len(own) : -1]
    spread = values.reshape(*own, *(1,) * len(missing), uses).expand(*own, *missing, uses)
    return spread.reshape(math.prod(x.shape[:-1]), uses)


def _rowwise(
    plan: str,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    left: Tensor,
    right: Tensor,
    deltas: Tensor,
    index: Tensor | None,
    scales: Tensor | None,
    *,
    upper: bool,
) -> Tensor:
    if plan == "reference":
        return reference_linear(x, weight, bias, left, right, deltas, index, scales)
    if plan == "triton":
        # The kernels compute in float32 and no wider.
        deltas, scales = deltas.float(), None if scales is None else scales.float()
    y: Tensor = fused_linear(
        x,
        weight,
        bias,
        left,
        right,
        deltas.contiguous(),
        None if index is None else index.contiguous(),
        None if scales is None else scales.contiguous(),
        upper,
        plan,
    )
    return y


def _problem(
    x: Tensor,
    weight: Tensor,
    left: Tensor,
    right: Tensor,
    deltas: Tensor,
    *,
    upper: bool,
    rowwise: bool = False,
    packing: Packing | None = None,
) -> Problem:
    recorded = torch.is_grad_enabled()
    return Problem(
        tokens=math.prod(x.shape[:-1]),
        out_features=weight.shape[0],
        in_features=weight.shape[1],
        rank=left.shape[1],
        dtype=x.dtype,
        device=x.device,
        x_gradient=recorded and x.requires_grad,
        delta_gradient=recorded and deltas.requires_grad,
        rowwise=rowwise,
        upper=upper,
        packing=packing is not None,
        transformed=transformed(),
        constant=not (recorded and any(tensor.requires_grad for tensor in (weight, left, right))),
    )
