"""Arrange what is left of the weights by layer and module type."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lowrank_ldu.analysis.report.advice import advice_of
from lowrank_ldu.analysis.report.heat import HeatMap, HeatScale, arrange
from lowrank_ldu.analysis.report.places import places_of

if TYPE_CHECKING:
    from lowrank_ldu.analysis.result import Analysis

# Shares of a weight's numbers, from nothing, which is dark, to all of it.
LEFT = HeatScale(
    place=lambda share: share,
    write=lambda share: f"{share:.0%}" if share < 1.0 else "keep",
    label="numbers left",
    ticks=((0.0, "0 %"), (0.25, "25 %"), (0.5, "50 %"), (0.75, "75 %"), (1.0, "keep")),
)


def heat_map(analysis: Analysis) -> HeatMap:
    """Arrange what is recommended by layer and module type.

    Figures are the numbers of the recommended factors over those of the weight, 1 where it is kept.
    """
    advice = {tensor.name: advice_of(matrix) for tensor, matrix in analysis.matrices}
    return arrange(
        {name: each.share for name, each in advice.items()},
        {name: each.short for name, each in advice.items()},
        places_of(analysis),
        LEFT,
    )


def heat_title(analysis: Analysis) -> str:
    """Return what the heat map shows, for its title."""
    return f"Left at an error of {max(analysis.options.targets):g}"
