"""Add the update P L K U to outputs and weights.

K is diag(delta), or a core of blocks.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import torch

from lowrank_ldu.nn.cores import scaled_core, times_core
from lowrank_ldu.validation import dtype_name

if TYPE_CHECKING:
    from collections.abc import Iterable

    from torch import Tensor, nn

    from lowrank_ldu.nn.factors import Factors
    from lowrank_ldu.nn.kinds import LayerKind


class Update(NamedTuple):
    """Hold an update P L K U of a base layer's weight.

    Attributes
    ----------
    factors : Factors
    delta : Tensor
        The core K: a diagonal (r,), or blocks (g, b, b); with `choice` there are A of them.
    choice : Tensor, shape (B,), optional
        The row of delta that each row of the batch uses; the last row is zero, for rows without an update.
    """

    factors: Factors
    delta: Tensor
    choice: Tensor | None = None

    @property
    def rows(self) -> Tensor:
        """Return the cores, one for all rows or one for each row of a batch."""
        return self.delta if self.choice is None else self.delta[self.choice]


def updated_output(  # noqa: PLR0917  # all of it is needed, and in this order everywhere
    base_layer: nn.Module, kind: type[LayerKind], x: Tensor, y: Tensor, factors: Factors, delta: Tensor
) -> Tensor:
    """Return an output y plus the update's part of it.

    That part is the product of x with P L K U.

    Parameters
    ----------
    base_layer : nn.Module
    kind : LayerKind
        The base layer's.
    x, y : Tensor
        The base layer's input and output.
    factors : Factors
    delta : Tensor
        One core K, or one for each row of the batch: of different adapters, which share the factors.
    """
    if x.is_floating_point():
        x = x.to(factors.right.dtype)
    return y + kind.update(base_layer, x, factors.left, factors.right, scaled_core(delta, factors.scale)).to(y.dtype)


def updated_matrix(factors: Factors, delta: Tensor) -> Tensor:
    """Return the matrix P L K U, shape (m, n).

    It is in float32, or in float64 if delta is.
    """
    left, right = update_pair(factors, delta)
    return left @ right


def update_pair(factors: Factors, delta: Tensor) -> tuple[Tensor, Tensor]:
    """Return (B, A) with B A = P L K U.

    B has shape (m, r) and A has shape (r, n), in float32, or in float64 if delta is.
    """
    wide = torch.promote_types(delta.dtype, torch.float32)
    core = scaled_core(delta, factors.scale).to(wide)
    return times_core(factors.left.to(wide), core), factors.right.to(wide)


def merged_weight(weight: Tensor, kind: type[LayerKind], updates: Iterable[Tensor]) -> Tensor:
    """Return the sum of a weight and updates (m, n).

    It is in the weight's layout and dtype. All are summed in their common dtype and rounded once.

    Raises
    ------
    OverflowError
        The sum is not finite in the weight's dtype.
    """
    merged = summed_weight(weight, kind, updates)
    if not bool(merged.isfinite().all()):
        raise OverflowError(
            f"the merged weight overflows {dtype_name(weight)}; accepted: a smaller update, or a wider base"
        )
    return merged


def summed_weight(weight: Tensor, kind: type[LayerKind], updates: Iterable[Tensor]) -> Tensor:
    """Return the sum of `merged_weight` unchecked.

    It has the gradients of its summands.
    """
    total = sum(updates, torch.zeros((), device=weight.device))
    matrix = kind.as_matrix(weight)
    merged = (matrix.to(torch.promote_types(total.dtype, matrix.dtype)) + total).to(weight.dtype)
    return kind.as_weight(merged, weight)
