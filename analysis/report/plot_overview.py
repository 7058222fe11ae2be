"""Draw the errors of every matrix on one plot."""

from __future__ import annotations

from typing import TYPE_CHECKING

from matplotlib.figure import Figure

from lowrank_ldu.analysis.report.panel import COLORS, MARKERS, Panel
from lowrank_ldu.analysis.report.places import places_of
from lowrank_ldu.analysis.report.rows import Marks, RowsLook, by_module, rows_panel
from lowrank_ldu.analysis.report.scope import headline_matrices, svd_name

if TYPE_CHECKING:
    from lowrank_ldu.analysis.measures.matrix import MatrixAnalysis
    from lowrank_ldu.analysis.report.panel import Place
    from lowrank_ldu.analysis.result import Analysis

# Errors beyond these limits are drawn at the edge: of nearly full ranks, or of large element growth.
_LEAST, _GREATEST = 1e-2, 1e2


def overview_panel(analysis: Analysis, place: Place = Figure) -> Panel:
    """Draw a row of errors for each matrix.

    By module type, at the headline rank.
    """
    groups = by_module(((tensor.name, matrix) for tensor, matrix in headline_matrices(analysis)), places_of(analysis))
    series = _series(analysis, [matrix for group in groups for matrix in group.matrices])
    title = f"Error of each matrix, rank {analysis.headline_rank}"
    look = RowsLook(title, "relative Frobenius error", _LEAST, _GREATEST, reaches=(0.5, 2.0))
    return rows_panel(groups, series, look, place, reference=_draw_zero_matrix)


def _draw_zero_matrix(panel: Panel) -> None:
    end = panel.axes.get_xlim()[1]
    panel.axes.axvspan(1.0, end, color=COLORS["partial"], alpha=0.09, linewidth=0, zorder=0.5)
    panel.axes.axvline(1.0, color="#555555", linewidth=1.4, label="zero matrix: 1")
    panel.axes.set_xlim(right=end)


def _series(analysis: Analysis, matrices: list[MatrixAnalysis]) -> list[Marks]:
    rank, strategies = analysis.headline_rank, analysis.options.pivoting
    figures = {"svd": [matrix.at("ldu", rank, strategies[0]).diagnostics.svd_frobenius_error for matrix in matrices]}
    figures["ldu_lowrank"] = [matrix.at("ldu_lowrank", rank).diagnostics.frobenius_error for matrix in matrices]
    for pivoting in strategies:
        figures[pivoting] = [matrix.at("ldu", rank, pivoting).diagnostics.frobenius_error for matrix in matrices]
    labels = {"svd": svd_name(matrices), "ldu_lowrank": "near-best LDU"}
    return [
        Marks(labels.get(method, f"LDU {method}"), COLORS[method], MARKERS[method], errors)
        for method, errors in figures.items()
    ]
