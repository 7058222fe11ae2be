"""Draw a comparison's plots on axes of a caller."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lowrank_ldu.analysis.comparison.heat_of_updates import heat_of_updates
from lowrank_ldu.analysis.comparison.plots import number_panel, overview_panel, share_panel, update_heat_panel
from lowrank_ldu.analysis.report.on_axes import place_of
from lowrank_ldu.validation import check_flag

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from lowrank_ldu.analysis.comparison.result import CheckpointComparison
    from lowrank_ldu.analysis.report.panel import Place


def draw_overview(comparison: CheckpointComparison, ax: Axes | None) -> Axes:
    """Draw a row of shares for each update."""
    return overview_panel(comparison, _place(comparison, ax)).axes


def draw_heat_map(comparison: CheckpointComparison, ax: Axes | None) -> Axes:
    """Draw how far weights were moved by layer and module type."""
    place, heat = _place(comparison, ax), heat_of_updates(comparison)
    if not heat.cells:
        raise ValueError("no matrix has a layer in its name; accepted: names such as 'layers.0.weight', or plot_shares")
    return update_heat_panel(comparison, heat, place).axes


def draw_shares(comparison: CheckpointComparison, ax: Axes | None, *, logarithmic: bool) -> Axes:
    """Draw shares along the rank."""
    logarithmic = check_flag(logarithmic, "logarithmic")
    return share_panel(comparison, _place(comparison, ax), logarithmic=logarithmic).axes


def draw_trained_numbers(comparison: CheckpointComparison, ax: Axes | None) -> Axes:
    """Draw shares along the trained numbers."""
    return number_panel(comparison, _place(comparison, ax)).axes


def _place(comparison: CheckpointComparison, ax: Axes | None) -> Place:
    return place_of(comparison, ax, "comparison")
