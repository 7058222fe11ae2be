"""Fit the factors of adapters to a task.

Pivots are chosen, and bases made, by the gradients of a loss or by activations.
"""

from lowrank_ldu.errors import FittingError
from lowrank_ldu.fitting.basis import fit_basis
from lowrank_ldu.fitting.fitted_basis import FittedBasis
from lowrank_ldu.fitting.pivots import choose_pivots
from lowrank_ldu.fitting.pivots_record import LayerPivots, Pivots
from lowrank_ldu.fitting.sums import SOURCES, Source, input_moments, loss_gradients
from lowrank_ldu.fitting.targets import TargetLayer, target_layers

__all__ = [
    "SOURCES",
    "FittedBasis",
    "FittingError",
    "LayerPivots",
    "Pivots",
    "Source",
    "TargetLayer",
    "choose_pivots",
    "fit_basis",
    "input_moments",
    "loss_gradients",
    "target_layers",
]


def __dir__() -> list[str]:
    return __all__
