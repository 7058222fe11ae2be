"""Error against rank."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from lowrank_ldu.analysis.curves import sample_ranks
from lowrank_ldu.analysis.report.plot_panel import COLOURS, Panel

if TYPE_CHECKING:
    from collections.abc import Callable

    import numpy.typing as npt

    from lowrank_ldu.analysis.matrix import MatrixAnalysis
    from lowrank_ldu.analysis.run import Analysis
    from lowrank_ldu.decomposition import Pivoting


def error_panels(analysis: Analysis) -> list[str]:
    """Return a panel for each pivoting, on one scale: LDU, its refit and SVD, the median over matrices and a band."""
    panels = [_panel(pivoting, analysis) for pivoting in analysis.options.pivoting]
    top = max(panel.axes.get_ylim()[1] for panel in panels)
    for panel in panels:
        panel.axes.set_ylim(0, top)
    return [panel.to_svg() for panel in panels]


def _panel(pivoting: Pivoting, analysis: Analysis) -> Panel:
    panel = Panel(f"error-{pivoting}", f"LDU, {pivoting} pivoting", "rank r", "relative Frobenius error")
    matrices = [matrix for _, matrix in analysis.matrices]
    k = max(min(matrix.m, matrix.n) for matrix in matrices)
    grid = sample_ranks(k)
    lines: list[tuple[str, str, str, Callable[[MatrixAnalysis], list[float | None]]]] = [
        ("leading terms", COLOURS[pivoting], "-", lambda matrix: matrix.curves[pivoting].error),
        ("refitted diagonal", COLOURS[pivoting], "--", lambda matrix: matrix.curves[pivoting].refit_error),
        ("exact SVD (best possible)", COLOURS["svd"], "-", lambda matrix: matrix.svd_curve),
    ]
    for label, colour, style, curve in lines:
        low, middle, high = _quantiles([_on_grid(matrix, curve(matrix), grid) for matrix in matrices])
        panel.axes.fill_between(grid, low, high, color=colour, alpha=0.12, linewidth=0)
        panel.axes.plot(grid, middle, color=colour, linestyle=style, linewidth=2, label=label)
    panel.axes.axhline(1.0, color="#666666", linewidth=1.2, linestyle=":", label="zero matrix")
    panel.mark_ranks(analysis.options.ranks, k)
    panel.add_legend()
    return panel


def _on_grid(matrix: MatrixAnalysis, curve: list[float | None], grid: list[int]) -> npt.NDArray[np.float64]:
    """Return the curve at the ranks of the grid; NaN above the matrix's full rank and where there is no figure."""
    values = np.array([np.nan if value is None else value for value in curve])
    on_grid: npt.NDArray[np.float64] = np.interp(np.log(grid), np.log(matrix.curve_ranks), values, right=np.nan)
    return on_grid


def _quantiles(curves: list[npt.NDArray[np.float64]]) -> list[list[float]]:
    columns = [column[np.isfinite(column)] for column in np.array(curves).T]
    return [
        [float(np.quantile(column, share)) if column.size else np.nan for column in columns]
        for share in (0.1, 0.5, 0.9)
    ]
