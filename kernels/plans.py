"""List the names and implementations of the plans.

A plan is listed here, and its cost is written in `lowrank_ldu.kernels.planner`; nothing else has to know of it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, NamedTuple, Protocol, get_args

from lowrank_ldu.kernels import factored, hybrid, skeleton_plan
from lowrank_ldu.kernels.materialized import materialized_linear
from lowrank_ldu.kernels.reference import reference_linear

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

    from lowrank_ldu.kernels.call import Adapters, Gradients, Layer, Needs

Plan = Literal["auto", "reference", "factored", "hybrid", "materialized", "packed", "skeleton", "triton"]
PLANS: tuple[Plan, ...] = get_args(Plan)


class Passes(Protocol):
    """Require the two passes that `lowrank_ldu::linear` and its backward operator run."""

    def forward(self, x: Tensor, layer: Layer, adapters: Adapters) -> tuple[Tensor, Tensor]:
        """Return y (T, m) and a = x right^T (T, r).

        The projection a is kept for the backward pass.
        """
        ...

    def backward(
        self, gradient: Tensor, projected: Tensor, layer: Layer, adapters: Adapters, needs: Needs
    ) -> Gradients:
        """Return the gradients of x (T, n), of cores and of scales.

        Each is None if not needed; those of cores and scales are of their dtypes.
        """
        ...


class Implementation(NamedTuple):
    """Describe what computes a plan, and its properties.

    Attributes
    ----------
    linear : callable, optional
        Returns y for x (T, n): plain torch, which autograd and transforms differentiate. Without it the plan is an
        operator, which takes no part in transforms and gives no gradient of weight, left and right.
    passes : callable, optional
        Returns the plan's passes, those of the operator `lowrank_ldu::linear`; imports what they need.
    rowwise : bool
        Whether rows may have cores of their own.
    blocks : bool
        Whether cores may be other than diagonal.
    summing : bool
        Whether W and its update are summed, and the sum is rounded to W's dtype.
    gathering : bool
        Whether it gathers thin products where there is a skeleton.
    launching : bool
        Whether it launches kernels of its own, which compute in float32 and take no fake tensors.
    """

    linear: Callable[[Tensor, Layer, Adapters], Tensor] | None = None
    passes: Callable[[], Passes] | None = None
    rowwise: bool = True
    blocks: bool = True
    summing: bool = False
    gathering: bool = False
    launching: bool = False


def _triton() -> Passes:
    from lowrank_ldu.kernels.triton_kernels import launch  # noqa: PLC0415  # imports triton

    return launch


IMPLEMENTATIONS: dict[str, Implementation] = {
    "reference": Implementation(linear=reference_linear),
    "factored": Implementation(passes=lambda: factored),
    "hybrid": Implementation(passes=lambda: hybrid, rowwise=False, summing=True, gathering=True),
    "materialized": Implementation(linear=materialized_linear, rowwise=False, summing=True),
    "packed": Implementation(rowwise=False, blocks=False),  # an operator of its own, since it takes a packing
    "skeleton": Implementation(passes=lambda: skeleton_plan, gathering=True),
    "triton": Implementation(passes=_triton, launching=True),
}
