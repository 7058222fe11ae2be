"""Compute the layer, in torch or triton.

Triton is used where one of its kernels is asked for.
"""

from lowrank_ldu.kernels.api import ldu_linear, ldu_linear_multi
from lowrank_ldu.kernels.cores import core_product
from lowrank_ldu.kernels.machine import Machine
from lowrank_ldu.kernels.packed import Packing, pack
from lowrank_ldu.kernels.planner import Choice, Problem, choose_plan, plan_costs
from lowrank_ldu.kernels.plans import PLANS, Plan
from lowrank_ldu.kernels.reference import ldu_update
from lowrank_ldu.kernels.skeleton import Skeleton, skeleton_of

__all__ = [
    "PLANS",
    "Choice",
    "Machine",
    "Packing",
    "Plan",
    "Problem",
    "Skeleton",
    "choose_plan",
    "core_product",
    "ldu_linear",
    "ldu_linear_multi",
    "ldu_update",
    "pack",
    "plan_costs",
    "skeleton_of",
]


def __dir__() -> list[str]:
    return __all__
