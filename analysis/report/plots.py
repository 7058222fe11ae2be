"""Every plot over all matrices."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from lowrank_ldu.analysis.report.heat import heat_map
from lowrank_ldu.analysis.report.plot_conditioning import conditioning_panels
from lowrank_ldu.analysis.report.plot_errors import error_panels
from lowrank_ldu.analysis.report.plot_heat import heat_panel
from lowrank_ldu.analysis.report.plot_overview import overview_panel
from lowrank_ldu.analysis.report.plot_pivots import pivot_panels
from lowrank_ldu.analysis.report.plot_times import time_panels

if TYPE_CHECKING:
    from pathlib import Path

    from lowrank_ldu.analysis.report.plot_panel import Panel
    from lowrank_ldu.analysis.run import Analysis


@dataclass(frozen=True)
class Plots:
    """The plots by what they are about. `heat`, a table on the page, is empty where no name has a layer."""

    overview: list[Panel]
    heat: list[Panel]
    errors: list[Panel]
    pivots: list[Panel]
    conditioning: list[Panel]
    times: list[Panel]

    def save(self, folder: Path) -> None:
        """Write each plot into an existing folder, as PNG and as SVG."""
        for panels in vars(self).values():
            for panel in panels:
                panel.save(folder)


def draw_plots(analysis: Analysis) -> Plots:
    """Draw all plots."""
    heat = heat_map(analysis)
    title = f"LDU error, {analysis.options.pivoting[0]}, rank {analysis.headline_rank}"
    return Plots(
        overview=[overview_panel(analysis)],
        heat=[heat_panel(heat, title)] if heat.cells else [],
        errors=error_panels(analysis),
        pivots=pivot_panels(analysis),
        conditioning=conditioning_panels(analysis),
        times=time_panels(analysis),
    )
