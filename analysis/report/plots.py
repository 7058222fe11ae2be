"""Draw the plots over all matrices: errors, pivots, times, conditioning."""

from __future__ import annotations

from dataclasses import dataclass
from statistics import median
from typing import TYPE_CHECKING, Literal

import numpy as np
from matplotlib.figure import Figure

from lowrank_ldu.analysis.measures.curves import sample_ranks
from lowrank_ldu.analysis.measures.timing import Problem
from lowrank_ldu.analysis.report.heat import heat_panel
from lowrank_ldu.analysis.report.heat_of_advice import heat_map, heat_title
from lowrank_ldu.analysis.report.panel import COLORS, Panel, draw_band, drawable_logarithm
from lowrank_ldu.analysis.report.plot_overview import overview_panel
from lowrank_ldu.analysis.report.scope import best_name, svd_name
from lowrank_ldu.errors import OptionError

if TYPE_CHECKING:
    from collections.abc import Callable

    from lowrank_ldu.analysis.measures.matrix import MatrixAnalysis
    from lowrank_ldu.analysis.report.panel import Place
    from lowrank_ldu.analysis.result import Analysis
    from lowrank_ldu.decomposition import Pivoting


def error_panels(analysis: Analysis) -> list[Panel]:
    """Draw the errors along the rank, for each pivoting.

    LDU, its refit and SVD on one scale: the median over matrices and a band.
    """
    panels = [error_panel(analysis, pivoting) for pivoting in analysis.options.pivoting]
    top = max(panel.axes.get_ylim()[1] for panel in panels)
    for panel in panels:
        panel.axes.set_ylim(0, top)
    return panels


def error_panel(analysis: Analysis, pivoting: Pivoting, place: Place = Figure) -> Panel:
    """Draw the errors along the rank for one pivoting."""
    panel = Panel(f"error-{pivoting}", f"LDU, {pivoting} pivoting", "rank r", "relative Frobenius error", place=place)
    matrices = [matrix for _, matrix in analysis.matrices]
    largest = max(matrix.curve_ranks[-1] for matrix in matrices)
    grid = sample_ranks(largest)
    lines: list[tuple[str, str, str, Callable[[MatrixAnalysis], list[float | None]]]] = [
        ("leading terms", COLORS[pivoting], "-", lambda matrix: matrix.curves[pivoting].error),
        ("refitted diagonal", COLORS[pivoting], "--", lambda matrix: matrix.curves[pivoting].refit_error),
        (best_name(matrices), COLORS["svd"], "-", lambda matrix: matrix.svd_curve),
    ]
    for label, color, style, curve in lines:
        curves = [(matrix.curve_ranks, curve(matrix)) for matrix in matrices]
        draw_band(panel, grid, curves, label=label, color=color, style=style)
    panel.axes.axhline(1.0, color="#666666", linewidth=1.2, linestyle=":", label="zero matrix")
    panel.mark_ranks(analysis.options.ranks, largest)
    panel.add_legend()
    return panel


def pivot_panel(analysis: Analysis, pivoting: Pivoting, place: Place = Figure) -> Panel:
    """Draw the pivots of each matrix for one pivoting.

    The scale is that of the pivots of all.
    """
    matrices = [matrix for _, matrix in analysis.matrices]
    curves = [curve for matrix in matrices for curve in matrix.curves.values()]
    drawn = drawable_logarithm(pivot for curve in curves for pivot in curve.pivot)
    drawn = drawn[~np.isnan(drawn)]
    title = f"Pivots, {pivoting} pivoting"
    panel = Panel(f"pivots-{pivoting}", title, "step", "|pivot| (unit of the weight)", place=place)
    for matrix in matrices:
        panel.axes.plot(
            matrix.curve_ranks,
            drawable_logarithm(matrix.curves[pivoting].pivot),
            color=COLORS[pivoting],
            alpha=max(0.15, min(0.8, 6 / len(matrices))),
            linewidth=1,
        )
    panel.make_logarithmic(y=True)
    if drawn.size:
        panel.axes.set_ylim(drawn.min() / 1.5, drawn.max() * 1.5)
    panel.mark_ranks(analysis.options.ranks, max(matrix.curve_ranks[-1] for matrix in matrices))
    return panel


def time_panel(analysis: Analysis, place: Place = Figure) -> Panel:
    """Draw the time that each shape takes, in milliseconds."""
    times = _seconds(analysis)  # before there is a figure, which an error would leave
    title = f"Time to factor, rank {analysis.headline_rank}"
    panel = Panel("times", title, _ENTRIES, "time (ms)", place=place)
    for method, (label, seconds) in times.items():
        panel.scatter(_sizes(seconds), [1e3 * spent for spent in seconds.values()], method, label)
    panel.make_logarithmic(x=True, y=True)
    panel.add_legend()
    return panel


def speed_panel(analysis: Analysis, place: Place = Figure) -> Panel:
    """Draw the factor by which the SVD is slower, for each shape."""
    times = _seconds(analysis)
    name, exact = times.pop("svd")
    title = f"Speed against {name}, rank {analysis.headline_rank}"
    panel = Panel("speeds", title, _ENTRIES, "time of SVD / time", place=place)
    for method, (label, seconds) in times.items():
        factors = [exact[problem] / spent for problem, spent in seconds.items()]
        panel.scatter(_sizes(seconds), factors, method, label)
    panel.axes.axhline(1.0, color="#666666", linewidth=1.2, linestyle=":", label=f"as fast as {name}")
    panel.make_logarithmic(x=True, y=True)
    panel.add_legend()
    return panel


_ENTRIES = "entries of the matrix (m n)"


def _sizes(seconds: dict[Problem, float]) -> list[int]:
    return [problem.m * problem.n for problem in seconds]


def _seconds(analysis: Analysis) -> dict[str, tuple[str, dict[Problem, float]]]:
    """Return the label of each method and its seconds for each shape, at the headline rank."""
    if not analysis.has_times:
        options = analysis.options
        raise OptionError(
            f"mode is {options.mode!r} and times is {options.times}, so that nothing was timed; accepted: an analysis "
            "with times=True"
        )
    rank = analysis.headline_rank
    matrices = {Problem.of(matrix): matrix for _, matrix in analysis.matrices if matrix.svd_seconds is not None}

    def of(seconds: Callable[[MatrixAnalysis], float | None]) -> dict[Problem, float]:
        return {problem: spent for problem, matrix in matrices.items() if (spent := seconds(matrix)) is not None}

    series = {"svd": (svd_name(matrices.values()), of(lambda matrix: matrix.svd_seconds))}
    if analysis.options.has_pissa:
        series["pissa"] = ("quick PiSSA", of(lambda matrix: matrix.at("pissa", rank).seconds))
    series["ldu_lowrank"] = ("near-best LDU", of(lambda matrix: matrix.at("ldu_lowrank", rank).seconds))
    for pivoting in analysis.options.pivoting:
        seconds = of(lambda matrix, pivoting=pivoting: matrix.at("ldu", rank, pivoting).seconds)  # type: ignore[misc]
        series[pivoting] = (f"LDU {pivoting}", seconds)
    return series


Factor = Literal["left", "right", "gram"]
_CONDITIONS: dict[Factor, tuple[str, str]] = {
    "left": ("Left factor L", "cond(L)"),
    "right": ("Right factor U", "cond(U)"),
    "gram": ("Metric of the diagonal, G", "cond(G)"),
}
FACTORS = tuple(_CONDITIONS)
_SPREAD = 0.6
_BAR = 0.07


def conditioning_panel(analysis: Analysis, factor: Factor, place: Place = Figure) -> Panel:
    """Draw the condition numbers of L, U or G.

    A point for each matrix and a bar at the median, for each pivoting and rank.
    """
    largest = max(min(matrix.m, matrix.n) for _, matrix in analysis.matrices)
    ranks: list[int | None] = [rank for rank in analysis.options.ranks if rank < largest]
    if all(matrix.reaches_full_rank for _, matrix in analysis.matrices):
        ranks.append(None)  # other surveys stop before the full rank
    strategies = analysis.options.pivoting
    title, label = _CONDITIONS[factor]
    panel = Panel(f"condition-{factor}", title, "rank r", label, place=place)
    for at, rank in enumerate(ranks):
        for number, pivoting in enumerate(strategies):
            center = at + _SPREAD * ((number + 0.5) / len(strategies) - 0.5)
            values = _values(analysis, f"condition_{factor}", pivoting, rank)
            _draw(panel, center, values, pivoting, labeled=at == 0)
    panel.make_logarithmic(y=True)
    panel.axes.set_xticks(range(len(ranks)), [str(rank or "full") for rank in ranks])
    panel.axes.set_xlim(-0.5, len(ranks) - 0.5)
    panel.add_legend()
    return panel


def _values(analysis: Analysis, name: str, pivoting: Pivoting, rank: int | None) -> list[float]:
    """Return the drawable figures at a rank.

    Of the matrices whose full rank is above it, or of all at full rank.
    """
    values = [
        getattr(matrix.at("ldu", rank or min(matrix.m, matrix.n), pivoting).diagnostics, name)
        for _, matrix in analysis.matrices
        if rank is None or rank < min(matrix.m, matrix.n)
    ]
    drawn = drawable_logarithm(values)
    return [float(value) for value in drawn[~np.isnan(drawn)]]


def _draw(panel: Panel, center: float, values: list[float], pivoting: Pivoting, *, labeled: bool) -> None:
    panel.scatter([center] * len(values), values, pivoting, pivoting if labeled else None)
    if values:
        panel.axes.hlines(median(values), center - _BAR, center + _BAR, color=COLORS[pivoting], linewidth=2.5)


@dataclass(frozen=True)
class Plots:
    """Hold the plots by subject.

    `heat`, a table on the page, is empty where no name has a layer.
    """

    overview: list[Panel]
    heat: list[Panel]
    errors: list[Panel]
    pivots: list[Panel]
    conditioning: list[Panel]
    times: list[Panel]

    @property
    def panels(self) -> list[Panel]:
        """All plots."""
        return [panel for panels in vars(self).values() for panel in panels]


def draw_plots(analysis: Analysis) -> Plots:
    """Draw all plots."""
    heat = heat_map(analysis)
    return Plots(
        overview=[overview_panel(analysis)],
        heat=[heat_panel(heat, heat_title(analysis))] if heat.cells else [],
        errors=error_panels(analysis),
        pivots=[pivot_panel(analysis, pivoting) for pivoting in analysis.options.pivoting],
        conditioning=[conditioning_panel(analysis, factor) for factor in FACTORS],
        times=[time_panel(analysis), speed_panel(analysis)] if analysis.has_times else [],
    )
