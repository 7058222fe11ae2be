"""Magnitude of the pivots against the step."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from lowrank_ldu.analysis.report.plot_panel import COLOURS, Panel, drawable_logarithm

if TYPE_CHECKING:
    from lowrank_ldu.analysis.run import Analysis


def pivot_panels(analysis: Analysis) -> list[Panel]:
    """Return a panel for each pivoting, with a line for each matrix, all on the same scale."""
    matrices = [matrix for _, matrix in analysis.matrices]
    curves = [curve for matrix in matrices for curve in matrix.curves.values()]
    drawn = drawable_logarithm(pivot for curve in curves for pivot in curve.pivot)
    drawn = drawn[~np.isnan(drawn)]
    panels = []
    for pivoting in analysis.options.pivoting:
        panel = Panel(f"pivots-{pivoting}", f"Pivots, {pivoting} pivoting", "step", "|pivot| (unit of the weight)")
        for matrix in matrices:
            panel.axes.plot(
                matrix.curve_ranks,
                drawable_logarithm(matrix.curves[pivoting].pivot),
                color=COLOURS[pivoting],
                alpha=max(0.15, min(0.8, 6 / len(matrices))),
                linewidth=1,
            )
        panel.make_logarithmic(y=True)
        if drawn.size:
            panel.axes.set_ylim(drawn.min() / 1.5, drawn.max() * 1.5)
        panel.mark_ranks(analysis.options.ranks, max(matrix.curve_ranks[-1] for matrix in matrices))
        panels.append(panel)
    return panels
