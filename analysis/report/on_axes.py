"""Draw the report's plots on axes of a caller."""

from __future__ import annotations

from typing import TYPE_CHECKING

from matplotlib.axes import Axes

from lowrank_ldu.analysis.report.heat import heat_panel
from lowrank_ldu.analysis.report.heat_of_advice import heat_map, heat_title
from lowrank_ldu.analysis.report.plot_overview import overview_panel
from lowrank_ldu.analysis.report.plots import (
    FACTORS,
    Factor,
    conditioning_panel,
    error_panel,
    pivot_panel,
    speed_panel,
    time_panel,
)
from lowrank_ldu.validation import check_choice

if TYPE_CHECKING:
    from lowrank_ldu.analysis.comparison.result import CheckpointComparison
    from lowrank_ldu.analysis.report.panel import Place
    from lowrank_ldu.analysis.result import Analysis
    from lowrank_ldu.decomposition import Pivoting


def draw_overview(analysis: Analysis, ax: Axes | None) -> Axes:
    """Draw a row of errors for each matrix."""
    return overview_panel(analysis, place_of(analysis, ax)).axes


def draw_heat_map(analysis: Analysis, ax: Axes | None) -> Axes:
    """Draw what is left of the weights by layer and module type."""
    place = place_of(analysis, ax)
    heat = heat_map(analysis)
    if not heat.cells:
        raise ValueError("no matrix has a layer in its name; accepted: names such as 'layers.0.weight', or plot_errors")
    return heat_panel(heat, heat_title(analysis), place).axes


def draw_errors(analysis: Analysis, ax: Axes | None, pivoting: Pivoting | None) -> Axes:
    """Draw errors along the rank."""
    panel = error_panel(analysis, _strategy(analysis, pivoting), place_of(analysis, ax))
    panel.axes.set_ylim(bottom=0)
    return panel.axes


def draw_pivots(analysis: Analysis, ax: Axes | None, pivoting: Pivoting | None) -> Axes:
    """Draw pivots along the elimination."""
    return pivot_panel(analysis, _strategy(analysis, pivoting), place_of(analysis, ax)).axes


def draw_conditioning(analysis: Analysis, ax: Axes | None, factor: Factor) -> Axes:
    """Draw condition numbers."""
    check_choice(factor, "factor", FACTORS)
    return conditioning_panel(analysis, factor, place_of(analysis, ax)).axes


def draw_times(analysis: Analysis, ax: Axes | None) -> Axes:
    """Draw the time of each method."""
    return time_panel(analysis, place_of(analysis, ax)).axes


def draw_speeds(analysis: Analysis, ax: Axes | None) -> Axes:
    """Draw the time of the SVD over that of each method."""
    return speed_panel(analysis, place_of(analysis, ax)).axes


def place_of(held: Analysis | CheckpointComparison, ax: Axes | None, what: str = "analysis") -> Place:
    """Return where to draw: given axes, or a new figure of pyplot."""
    if not held.matrices:
        raise ValueError(f"the {what} has no matrices; accepted: one that has some to draw")
    if ax is None:
        from matplotlib import pyplot as plt  # noqa: PLC0415  # it chooses a window system

        return plt.figure
    if not isinstance(ax, Axes):
        raise TypeError(f"ax is of type {type(ax).__name__}; accepted: matplotlib.axes.Axes, or None for a new figure")
    return ax


def _strategy(analysis: Analysis, pivoting: Pivoting | None) -> Pivoting:
    if pivoting is None:
        return analysis.options.pivoting[0]
    check_choice(pivoting, "pivoting", analysis.options.pivoting)
    return pivoting
