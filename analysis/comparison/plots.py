"""Draw the shares of updates that can be expressed: over all matrices, and by layer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from matplotlib.figure import Figure

from lowrank_ldu.analysis.comparison.heat_of_updates import HEAT_TITLE, heat_of_updates
from lowrank_ldu.analysis.comparison.lines import lines_of
from lowrank_ldu.analysis.comparison.scope import matrices_above, sides_of, typical_matrices
from lowrank_ldu.analysis.measures.curves import sample_ranks
from lowrank_ldu.analysis.report.heat import heat_panel
from lowrank_ldu.analysis.report.panel import Panel, draw_band, plain
from lowrank_ldu.analysis.report.places import places_of
from lowrank_ldu.analysis.report.rows import Marks, RowsLook, by_module, rows_panel

if TYPE_CHECKING:
    from lowrank_ldu.analysis.comparison.result import CheckpointComparison
    from lowrank_ldu.analysis.report.heat import HeatMap
    from lowrank_ldu.analysis.report.panel import Place

_SHARE = "share of ‖update‖² explained"
# Least share on a logarithmic axis: smaller ones would flatten all others.
_LEAST_DRAWN = 1e-6
# Inches: the label of the shares is as long as the axes are high, beside a legend of five lines.
_SIZE = (4.8, 4.3)
# A name of a side in a legend.
_LONGEST_SIDE = 42


@dataclass(frozen=True)
class ComparisonPlots:
    """Hold the plots of a comparison.

    `heat`, a table on the page, is None where no name has a layer.
    """

    overview: Panel
    heat: Panel | None
    shares: list[Panel]

    @property
    def panels(self) -> list[Panel]:
        """All plots."""
        return [self.overview, *([] if self.heat is None else [self.heat]), *self.shares]


def draw_comparison(comparison: CheckpointComparison) -> ComparisonPlots:
    """Draw all plots."""
    heat = heat_of_updates(comparison)
    return ComparisonPlots(
        overview=overview_panel(comparison),
        heat=update_heat_panel(comparison, heat) if heat.cells else None,
        shares=[
            share_panel(comparison, logarithmic=False),
            share_panel(comparison, logarithmic=True),
            number_panel(comparison),
        ],
    )


def update_heat_panel(comparison: CheckpointComparison, heat: HeatMap, place: Place = Figure) -> Panel:
    """Draw how far weights were moved, by layer and module type; the heat map has cells."""
    panel = heat_panel(heat, HEAT_TITLE, place)
    panel.add_legend(heading=_sides(comparison))
    return panel


def overview_panel(comparison: CheckpointComparison, place: Place = Figure) -> Panel:
    """Draw a row of shares for each matrix.

    By module type, in the order of layers, at the headline rank.
    """
    rank = comparison.headline_rank
    groups = by_module(
        ((tensor.name, matrix) for tensor, matrix in matrices_above(comparison, rank)), places_of(comparison)
    )
    matrices = [matrix for group in groups for matrix in group.matrices]
    series = [
        Marks(
            line.label,
            line.color,
            line.marker,
            [line.share(matrix, min(rank, matrix.full_rank)) for matrix in matrices],
        )
        for line in lines_of(comparison.options.pivoting)
    ]
    title = f"Share of each update, rank {rank}"
    look = RowsLook(title, _SHARE, _LEAST_DRAWN, 1.0, reaches=(0.5, 1.0), heading=_sides(comparison))
    return rows_panel(groups, series, look, place)


def share_panel(comparison: CheckpointComparison, place: Place = Figure, *, logarithmic: bool) -> Panel:
    """Draw shares against the rank."""
    scale = "logarithmic" if logarithmic else "linear"
    panel = Panel(f"explained-{scale}", f"Against rank, {scale}", "rank r", _SHARE, _SIZE, place=place)
    matrices = [matrix for _, matrix in typical_matrices(comparison)]
    k = max(matrix.full_rank for matrix in matrices)
    for line in lines_of(comparison.options.pivoting):
        curves = [(matrix.curve_ranks, line.curve(matrix)) for matrix in matrices]
        draw_band(panel, sample_ranks(k), curves, label=line.label, color=line.color, style=line.style)
    panel.mark_ranks(comparison.options.ranks, k)
    _limit(panel, logarithmic=logarithmic)
    panel.add_legend(heading=_sides(comparison))
    return panel


def number_panel(comparison: CheckpointComparison, place: Place = Figure) -> Panel:
    """Draw shares against trained numbers.

    Divided by the least number that LoRA trains, so that matrices of every shape fit.
    """
    panel = Panel(
        "explained-numbers", "Against trained numbers", "trained numbers / (m + n)", _SHARE, _SIZE, place=place
    )
    matrices = [matrix for _, matrix in typical_matrices(comparison)]
    for line in lines_of(comparison.options.pivoting):
        curves = [
            ([line.numbers(matrix, rank) / matrix.least_lora for rank in matrix.curve_ranks], line.curve(matrix))
            for matrix in matrices
        ]
        ends = [end for places, _ in curves for end in (places[0], places[-1])]
        grid = [float(place) for place in np.geomspace(min(ends), max(ends), 96)]
        draw_band(panel, grid, curves, label=line.label, color=line.color, style=line.style)
    panel.make_logarithmic(x=True)
    _limit(panel, logarithmic=True)
    panel.add_legend(heading=_sides(comparison))
    return panel


def _limit(panel: Panel, *, logarithmic: bool) -> None:
    if not logarithmic:
        panel.axes.set_ylim(0, 1.02)
        return
    panel.make_logarithmic(y=True)
    panel.axes.set_ylim(max(panel.axes.get_ylim()[0], _LEAST_DRAWN), 1.3)


def _sides(comparison: CheckpointComparison) -> str:
    sides = sides_of(comparison)
    return f"base: {plain(sides.base, _LONGEST_SIDE)}\ntuned: {plain(sides.tuned, _LONGEST_SIDE)}"
