"""Draw the errors of every matrix on one plot."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, LogLocator, NullLocator

from lowrank_ldu.analysis.report.panel import COLORS, MARKERS, Panel, plain
from lowrank_ldu.analysis.report.places import places_of
from lowrank_ldu.analysis.report.scope import headline_matrices, svd_name

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from lowrank_ldu.analysis.measures.matrix import MatrixAnalysis
    from lowrank_ldu.analysis.report.panel import Place
    from lowrank_ldu.analysis.result import Analysis

# In points, which are the unit of the vertical axis.
_WIDTH, _MARGINS = 5.2 * 72, 100.0
_HEADING, _GAP = 13.5, 5.0
_ALL_ROWS, _LARGEST_ROW = 260.0, 8.0
_LARGEST_MARK = 5.5
_MOST_GROUPS = 30
_LONGEST_HEADING = 52
# Errors beyond these limits are drawn at the edge: of nearly full ranks, or of large element growth.
_LEAST, _GREATEST = 1e-2, 1e2


def overview_panel(analysis: Analysis, place: Place = Figure) -> Panel:
    """Draw a row of errors for each matrix.

    By module type, at the headline rank.
    """
    groups = _groups(analysis)
    total = sum(len(matrices) for _, matrices in groups)
    row = min(_LARGEST_ROW, _ALL_ROWS / total)
    height = row * total + (_HEADING + _GAP) * len(groups)
    panel = Panel(
        "overview",
        f"Error of each matrix, rank {analysis.headline_rank}",
        "relative Frobenius error",
        "",
        (_WIDTH / 72, (height + _MARGINS) / 72),
        place=place,
    )
    rows: list[float] = []
    top = 0.0
    for heading, matrices in groups:
        panel.axes.text(
            0.012, top + _HEADING - 3.5, heading, transform=panel.axes.get_yaxis_transform(), fontsize=9,
            parse_math=False, verticalalignment="baseline",
        )  # fmt: skip
        rows += [top + _HEADING + row * (number + 0.5) for number in range(len(matrices))]
        top += _HEADING + row * len(matrices) + _GAP
        panel.axes.axhline(top - _GAP / 2, color="#e4e4e4", linewidth=0.8)
    side = min(max(row * 0.75, 2.4), _LARGEST_MARK)
    _draw(panel, analysis, [matrix for _, matrices in groups for matrix in matrices], rows, side)
    panel.axes.set_ylim(top, 0)
    panel.axes.set_yticks([])
    panel.axes.grid(visible=False, axis="y")
    panel.add_legend(_LARGEST_MARK / side)
    return panel


def _draw(panel: Panel, analysis: Analysis, matrices: list[MatrixAnalysis], rows: list[float], side: float) -> None:
    rank, strategies = analysis.headline_rank, analysis.options.pivoting
    series = {"svd": [matrix.at("ldu", rank, strategies[0]).diagnostics.svd_frobenius_error for matrix in matrices]}
    series["ldu_lowrank"] = [matrix.at("ldu_lowrank", rank).diagnostics.frobenius_error for matrix in matrices]
    for pivoting in strategies:
        series[pivoting] = [matrix.at("ldu", rank, pivoting).diagnostics.frobenius_error for matrix in matrices]
    low, high = _limits([error for errors in series.values() for error in errors])
    drawn = {
        method: [min(max(error, low), high) if math.isfinite(error) else high for error in errors]
        for method, errors in series.items()
    }
    panel.axes.axvspan(1.0, high * 1.1, color=COLORS["partial"], alpha=0.09, linewidth=0)
    panel.axes.axvline(1.0, color="#555555", linewidth=1.4, label="zero matrix: 1")
    panel.axes.hlines(
        rows,
        [min(errors) for errors in zip(*drawn.values(), strict=True)],
        [max(errors) for errors in zip(*drawn.values(), strict=True)],
        color="#bbbbbb",
        linewidth=0.15 * side,
        alpha=side / _LARGEST_MARK,
        zorder=1,
    )
    labels = {"svd": svd_name(matrices), "ldu_lowrank": "near-best LDU"}
    for method, errors in drawn.items():
        panel.axes.scatter(
            errors, rows, s=side * side, color=COLORS[method], marker=MARKERS[method], linewidths=min(1.2, side / 3),
            alpha=0.85, label=labels.get(method, f"LDU {method}"),
        )  # fmt: skip
    panel.axes.set_xscale("log")
    panel.axes.set_xlim(low / 1.1, high * 1.1)
    ticks = _ticks(low, high)
    panel.axes.xaxis.set_major_locator(FixedLocator(ticks))
    panel.axes.xaxis.set_minor_locator(NullLocator())
    panel.axes.set_xticklabels([f"{tick:g}" for tick in ticks])


def _groups(analysis: Analysis) -> list[tuple[str, list[MatrixAnalysis]]]:
    """Group the matrices by module type.

    The types are in the checkpoint's order, and each in the order of its layers.
    """
    chosen = headline_matrices(analysis)
    found = places_of(analysis)
    groups: dict[str, list[tuple[int, MatrixAnalysis]]] = {}
    for tensor, matrix in chosen:
        place = found[tensor.name]
        groups.setdefault(place.module, []).append((place.layer or 0, matrix))
    kept = set(sorted(groups, key=lambda module: -len(groups[module]))[:_MOST_GROUPS])
    result = [
        (_heading(module, len(group)), [matrix for _, matrix in sorted(group, key=lambda entry: entry[0])])
        for module, group in groups.items()
        if module in kept
    ]
    rest = [matrix for module, group in groups.items() if module not in kept for _, matrix in group]
    return [*result, (f"all others ({len(rest)})", rest)] if rest else result


def _heading(module: str, count: int) -> str:
    text = plain(module, _LONGEST_HEADING)
    return f"{text} ({count})" if count > 1 else text


def _limits(errors: Iterable[float]) -> tuple[float, float]:
    finite = [error for error in errors if math.isfinite(error)]
    low = min([*(error for error in finite if error > 0), 0.5])
    return max(low, _LEAST), min(max(*finite, 2.0), _GREATEST)


def _ticks(low: float, high: float) -> Sequence[float]:
    decades = high / low > 200
    ticks = LogLocator(subs=(1.0,) if decades else (1.0, 2.0, 5.0), numticks=99).tick_values(low, high)
    return [float(tick) for tick in ticks if low / 1.1 <= tick <= high * 1.1]
