"""The share of the update that is explained, against rank and against the numbers that are trained."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from lowrank_ldu.analysis.curves import sample_ranks
from lowrank_ldu.analysis.report.bands import draw_band
from lowrank_ldu.analysis.report.plot_panel import COLOURS, Panel

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from lowrank_ldu.analysis.comparison.matrix import MatrixComparison
    from lowrank_ldu.analysis.comparison.run import CheckpointComparison
    from lowrank_ldu.decomposition import Pivoting

    Curve = Callable[[MatrixComparison], list[float | None]]

_SHARE = "share of ‖update‖² explained"
_LORA_COLOUR = "#C78500"
_RANDOM_COLOUR = "#666666"
# Where a share of nothing at all would pull the logarithmic axis to.
_LEAST_DRAWN = 1e-6


def explained_panels(comparison: CheckpointComparison) -> list[str]:
    """Return three panels: against rank on two scales, and against the numbers trained."""
    panels = [_against_rank(comparison, logarithmic=False), _against_rank(comparison, logarithmic=True)]
    return [panel.to_svg() for panel in (*panels, _against_numbers(comparison))]


def _lines(comparison: CheckpointComparison) -> Iterator[tuple[str, str, str, Curve]]:
    for pivoting in comparison.options.pivoting:
        yield f"LDU, {pivoting} pivoting", COLOURS[pivoting], "-", _of_ldu(pivoting)
    yield "base's singular vectors", COLOURS["svd"], "-", lambda matrix: matrix.svd.curve
    yield "LoRA (best possible)", _LORA_COLOUR, "--", lambda matrix: list(matrix.lora_curve)
    yield "random update", _RANDOM_COLOUR, ":", lambda matrix: [matrix.random(rank) for rank in matrix.curve_ranks]


def _of_ldu(pivoting: Pivoting) -> Curve:
    return lambda matrix: matrix.ldu[pivoting].curve


def _against_rank(comparison: CheckpointComparison, *, logarithmic: bool) -> Panel:
    scale = "logarithmic" if logarithmic else "linear"
    panel = Panel(f"explained-{scale}", f"Against rank, {scale}", "rank r", _SHARE)
    matrices = [matrix for _, matrix in comparison.matrices]
    k = max(matrix.full_rank for matrix in matrices)
    for label, colour, style, curve in _lines(comparison):
        curves = [(matrix.curve_ranks, curve(matrix)) for matrix in matrices]
        draw_band(panel, sample_ranks(k), curves, label=label, colour=colour, style=style)
    panel.mark_ranks(comparison.options.ranks, k)
    _limit(panel, logarithmic=logarithmic)
    panel.add_legend()
    return panel


def _against_numbers(comparison: CheckpointComparison) -> Panel:
    """Draw the diagonals and LoRA over one measure of size that fits matrices of every shape: LoRA's least."""
    panel = Panel("explained-numbers", "Against trained numbers", "trained numbers / (m + n)", _SHARE)
    matrices = [matrix for _, matrix in comparison.matrices]
    for label, colour, style, curve in _lines(comparison):
        whole = label.startswith("LoRA")  # in steps of m + n; a diagonal and its scale have r + 1
        curves = [
            (
                [rank if whole else (rank + 1) / matrix.least_lora for rank in matrix.curve_ranks],
                curve(matrix),
            )
            for matrix in matrices
        ]
        ends = [end for places, _ in curves for end in (places[0], places[-1])]
        grid = [float(place) for place in np.geomspace(min(ends), max(ends), 96)]
        draw_band(panel, grid, curves, label=label, colour=colour, style=style)
    panel.make_logarithmic(x=True)
    _limit(panel, logarithmic=True)
    panel.add_legend()
    return panel


def _limit(panel: Panel, *, logarithmic: bool) -> None:
    if not logarithmic:
        panel.axes.set_ylim(0, 1.02)
        return
    panel.make_logarithmic(y=True)
    panel.axes.set_ylim(max(panel.axes.get_ylim()[0], _LEAST_DRAWN), 1.3)
