"""Nothing is timed before its numbers are right."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from torch import Tensor, nn

    from lowrank_ldu.benchmarking.methods import Method
    from lowrank_ldu.nn import LoLDULayer

# Products of several hundred terms, of the largest entry: rounding comes to some eps, and TF32 where it is allowed to
# 1e-3. The dense formula subtracts and adds what the factorisation leaves, with the growth of its rounding errors.
_TOLERANCE = {torch.float64: 1e-10, torch.float32: 1e-4, torch.float16: 2e-2, torch.bfloat16: 1e-1}
# Rows that are looked at.
_ROWS = 64


def deviation(method: Method, base: nn.Linear, adapted: LoLDULayer, x: Tensor) -> float:
    """Return the largest error of a method's output over the largest output, against float64.

    Parameters
    ----------
    method : Method
    base : nn.Linear
        The layer it started from.
    adapted : LoLDULayer
        The same with the adapter.
    x : Tensor, shape (T, n)
    """
    weight = base.weight.detach().double()
    if method.adapted:
        factors = adapted.factors
        delta = (adapted.delta * factors.scale).detach().double()
        weight = weight + (factors.left.double() * delta) @ factors.right.double()
    with torch.no_grad():
        rows = slice(None) if len(x) <= _ROWS else slice(0, _ROWS)
        expected = x[rows].double() @ weight.T + base.bias.detach().double()
        y = method.module(x)[rows].double()
    return float((y - expected).abs().max() / expected.abs().max())


def is_right(error: float, dtype: torch.dtype) -> bool:
    """Whether a deviation is rounding."""
    return error <= _TOLERANCE[dtype]
