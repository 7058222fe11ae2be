"""Error against rank."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lowrank_ldu.analysis.curves import sample_ranks
from lowrank_ldu.analysis.report.bands import draw_band
from lowrank_ldu.analysis.report.plot_panel import COLOURS, Panel
from lowrank_ldu.analysis.report.yardstick import best_name

if TYPE_CHECKING:
    from collections.abc import Callable

    from lowrank_ldu.analysis.matrix import MatrixAnalysis
    from lowrank_ldu.analysis.run import Analysis
    from lowrank_ldu.decomposition import Pivoting


def error_panels(analysis: Analysis) -> list[Panel]:
    """Return a panel for each pivoting, on one scale: LDU, its refit and SVD, the median over matrices and a band."""
    panels = [_panel(pivoting, analysis) for pivoting in analysis.options.pivoting]
    top = max(panel.axes.get_ylim()[1] for panel in panels)
    for panel in panels:
        panel.axes.set_ylim(0, top)
    return panels


def _panel(pivoting: Pivoting, analysis: Analysis) -> Panel:
    panel = Panel(f"error-{pivoting}", f"LDU, {pivoting} pivoting", "rank r", "relative Frobenius error")
    matrices = [matrix for _, matrix in analysis.matrices]
    largest = max(matrix.curve_ranks[-1] for matrix in matrices)
    grid = sample_ranks(largest)
    lines: list[tuple[str, str, str, Callable[[MatrixAnalysis], list[float | None]]]] = [
        ("leading terms", COLOURS[pivoting], "-", lambda matrix: matrix.curves[pivoting].error),
        ("refitted diagonal", COLOURS[pivoting], "--", lambda matrix: matrix.curves[pivoting].refit_error),
        (best_name(matrices), COLOURS["svd"], "-", lambda matrix: matrix.svd_curve),
    ]
    for label, colour, style, curve in lines:
        curves = [(matrix.curve_ranks, curve(matrix)) for matrix in matrices]
        draw_band(panel, grid, curves, label=label, colour=colour, style=style)
    panel.axes.axhline(1.0, color="#666666", linewidth=1.2, linestyle=":", label="zero matrix")
    panel.mark_ranks(analysis.options.ranks, largest)
    panel.add_legend()
    return panel
