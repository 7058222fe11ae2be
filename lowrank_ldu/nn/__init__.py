"""Adapt torch modules by LoLDU.

Of each adapted layer only the diagonal and one scale are trained.
"""

from lowrank_ldu.initialization import INITIALIZATIONS, Initialization, initial_diagonal
from lowrank_ldu.nn.basis import BASES, Basis, use_basis
from lowrank_ldu.nn.coordinates import PARAMETRIZATIONS, Parametrization
from lowrank_ldu.nn.cores import CORES, Core
from lowrank_ldu.nn.counting import ParameterCount, trainable_parameters
from lowrank_ldu.nn.explanation import LayerPlan, PlanExplanation, explain_plan
from lowrank_ldu.nn.injection import inject, lowrank_layers
from lowrank_ldu.nn.layer import LDULayer, LoLDULayer  # noqa: F401  # the second is its former name
from lowrank_ldu.nn.merging import merge, unload, unmerge
from lowrank_ldu.nn.optimization import ProjectedOptimizer, project_
from lowrank_ldu.nn.options import AdapterOptions
from lowrank_ldu.nn.parameter_groups import parameter_groups
from lowrank_ldu.nn.plan import set_plan

__all__ = [
    "BASES",
    "CORES",
    "INITIALIZATIONS",
    "PARAMETRIZATIONS",
    "AdapterOptions",
    "Basis",
    "Core",
    "Initialization",
    "LDULayer",
    "LayerPlan",
    "ParameterCount",
    "Parametrization",
    "PlanExplanation",
    "ProjectedOptimizer",
    "explain_plan",
    "initial_diagonal",
    "inject",
    "lowrank_layers",
    "merge",
    "parameter_groups",
    "project_",
    "set_plan",
    "trainable_parameters",
    "unload",
    "unmerge",
    "use_basis",
]


def __dir__() -> list[str]:
    return __all__
