"""Condition numbers against rank."""

from __future__ import annotations

from statistics import median
from typing import TYPE_CHECKING

import numpy as np

from lowrank_ldu.analysis.report.plot_panel import COLOURS, Panel, drawable_logarithm

if TYPE_CHECKING:
    from lowrank_ldu.analysis.run import Analysis
    from lowrank_ldu.decomposition import Pivoting

_PANELS = (
    ("condition_left", "Left factor L", "cond(L)"),
    ("condition_right", "Right factor U", "cond(U)"),
    ("condition_gram", "Metric of the diagonal, G", "cond(G)"),
)
_SPREAD = 0.6
_BAR = 0.07


def conditioning_panels(analysis: Analysis) -> list[Panel]:
    """Return a panel for each factor: a point for each matrix and a bar at the median, for each pivoting and rank."""
    largest = max(min(matrix.m, matrix.n) for _, matrix in analysis.matrices)
    ranks: list[int | None] = [rank for rank in analysis.options.ranks if rank < largest]
    if all(matrix.svd_niter is None for _, matrix in analysis.matrices):
        ranks.append(None)  # a survey that is not exact stops before the full rank
    strategies = analysis.options.pivoting
    panels = []
    for name, title, label in _PANELS:
        panel = Panel(name.replace("_", "-"), title, "rank r", label)
        for place, rank in enumerate(ranks):
            for number, pivoting in enumerate(strategies):
                centre = place + _SPREAD * ((number + 0.5) / len(strategies) - 0.5)
                _draw(panel, centre, _values(analysis, name, pivoting, rank), pivoting, labelled=place == 0)
        panel.make_logarithmic(y=True)
        panel.axes.set_xticks(range(len(ranks)), [str(rank or "full") for rank in ranks])
        panel.axes.set_xlim(-0.5, len(ranks) - 0.5)
        panel.add_legend()
        panels.append(panel)
    return panels


def _values(analysis: Analysis, name: str, pivoting: Pivoting, rank: int | None) -> list[float]:
    """Return the figures that can be drawn of the matrices that the rank is low for, or of all at full rank."""
    values = [
        getattr(matrix.at("ldu", rank or min(matrix.m, matrix.n), pivoting).diagnostics, name)
        for _, matrix in analysis.matrices
        if rank is None or rank < min(matrix.m, matrix.n)
    ]
    drawn = drawable_logarithm(values)
    return [float(value) for value in drawn[~np.isnan(drawn)]]


def _draw(panel: Panel, centre: float, values: list[float], pivoting: Pivoting, *, labelled: bool) -> None:
    panel.scatter([centre] * len(values), values, pivoting, pivoting if labelled else None)
    if values:
        panel.axes.hlines(median(values), centre - _BAR, centre + _BAR, color=COLOURS[pivoting], linewidth=2.5)
