"""LoLDU for torch modules: a linear layer of which only the diagonal and one scale are trained."""

from lowrank_ldu.nn.counting import ParameterCount, trainable_parameters
from lowrank_ldu.nn.initialization import INITIALIZATIONS, Initialization, initial_diagonal
from lowrank_ldu.nn.injection import inject, lowrank_layers
from lowrank_ldu.nn.linear import LoLDULinear
from lowrank_ldu.nn.merging import merge, unload, unmerge
from lowrank_ldu.nn.projection import project_

__all__ = [
    "INITIALIZATIONS",
    "Initialization",
    "LoLDULinear",
    "ParameterCount",
    "initial_diagonal",
    "inject",
    "lowrank_layers",
    "merge",
    "project_",
    "trainable_parameters",
    "unload",
    "unmerge",
]
