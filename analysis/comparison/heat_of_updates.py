"""Arrange how far weights were moved by layer and module type."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from lowrank_ldu.analysis.comparison.scope import typical_matrices
from lowrank_ldu.analysis.report.heat import HeatMap, HeatScale, arrange
from lowrank_ldu.analysis.report.places import places_of
from lowrank_ldu.formatting import figure

if TYPE_CHECKING:
    from collections.abc import Iterable

    from lowrank_ldu.analysis.comparison.result import CheckpointComparison

HEAT_TITLE = "‖update‖ / ‖base‖"


def heat_of_updates(comparison: CheckpointComparison) -> HeatMap:
    """Arrange the relative norms of updates by layer and module type.

    The scale of colors is logarithmic, from the greatest of the typical matrices, which is dark, to the least.
    """
    return arrange(
        {tensor.name: matrix.relative_norm for tensor, matrix in comparison.matrices},
        {
            tensor.name: f"moved by {figure(matrix.relative_norm)} of its norm, stable rank "
            f"{figure(matrix.spectrum.stable_rank)}"
            for tensor, matrix in comparison.matrices
        },
        places_of(comparison),
        _scale(matrix.relative_norm for _, matrix in typical_matrices(comparison)),
    )


def _scale(norms: Iterable[float]) -> HeatScale:
    finite = [math.log(norm) for norm in norms if 0.0 < norm < math.inf] or [0.0]
    low, high = min(finite), max(finite)

    def place(norm: float) -> float:
        if not 0.0 < norm < math.inf:  # of a base that was zero, and of an update that vanishes beside its base
            return 0.0 if norm > 0.0 else 1.0
        return min(max((high - math.log(norm)) / (high - low), 0.0), 1.0) if high > low else 0.5

    ends = ((0.0, high), (1.0, low)) if high > low else ((0.5, high),)
    return HeatScale(place, figure, "moved by", tuple((at, figure(math.exp(norm))) for at, norm in ends))
