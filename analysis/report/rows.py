"""Draw a row of marks for each matrix, by module type."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Generic, TypeVar

from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, LogLocator, NullLocator

from lowrank_ldu.analysis.report.panel import Panel, plain

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from lowrank_ldu.analysis.report.panel import Place
    from lowrank_ldu.analysis.report.places import ModulePlace

_Matrix = TypeVar("_Matrix")

# In points, which are the unit of the vertical axis.
_WIDTH, _MARGINS = 5.2 * 72, 100.0
# The margins hold a legend of three lines; each more is as high as this.
_LEGEND, _LEGEND_LINE = 3, 15.0
_HEADING, _GAP = 13.5, 5.0
_ALL_ROWS, _LARGEST_ROW = 260.0, 8.0
_LARGEST_MARK = 5.5
_MOST_GROUPS = 30
_LONGEST_HEADING = 52


@dataclass(frozen=True)
class Group(Generic[_Matrix]):
    """Hold the matrices of one module type, in the order of their layers."""

    heading: str
    matrices: list[_Matrix]


@dataclass(frozen=True)
class Marks:
    """Hold one mark for each matrix, all of one look.

    A figure that is not finite is drawn at the upper limit.
    """

    label: str
    color: str
    marker: str
    figures: Sequence[float]


@dataclass(frozen=True)
class RowsLook:
    """Say what a panel of rows is of.

    Attributes
    ----------
    title, x_label : str
    least, greatest : float
        Figures beyond these limits are drawn at the edge.
    reaches : tuple of float
        The axis goes from the first of these to the second, or further.
    heading : str
        Of the legend, in any number of lines.
    """

    title: str
    x_label: str
    least: float
    greatest: float
    reaches: tuple[float, float]
    heading: str = ""


def by_module(matrices: Iterable[tuple[str, _Matrix]], places: Mapping[str, ModulePlace]) -> list[Group[_Matrix]]:
    """Group named matrices by module type.

    The types are in the given order, and each in the order of its layers.
    """
    groups: dict[str, list[tuple[int, _Matrix]]] = {}
    for name, matrix in matrices:
        place = places[name]
        groups.setdefault(place.module, []).append((place.layer or 0, matrix))
    kept = set(sorted(groups, key=lambda module: -len(groups[module]))[:_MOST_GROUPS])
    result = [
        Group(_heading(module, len(group)), [matrix for _, matrix in sorted(group, key=lambda entry: entry[0])])
        for module, group in groups.items()
        if module in kept
    ]
    rest = [matrix for module, group in groups.items() if module not in kept for _, matrix in group]
    return [*result, Group(f"all others ({len(rest)})", rest)] if rest else result


def _heading(module: str, count: int) -> str:
    text = plain(module, _LONGEST_HEADING)
    return f"{text} ({count})" if count > 1 else text


def rows_panel(
    groups: Sequence[Group[_Matrix]],
    series: Sequence[Marks],
    look: RowsLook,
    place: Place = Figure,
    *,
    reference: Callable[[Panel], None] = lambda _: None,
) -> Panel:
    """Draw a row of marks for each matrix.

    Parameters
    ----------
    groups : sequence of Group
    series : sequence of Marks
        Each with a figure for every matrix, in the order of the groups.
    look : RowsLook
    place : matplotlib.axes.Axes or callable
        As for `Panel`.
    reference : callable
        Draws what the marks are held against; called before the legend is made.
    """
    total = sum(len(group.matrices) for group in groups)
    row = min(_LARGEST_ROW, _ALL_ROWS / total)
    # Two entries a line, and one is added.
    lines = len(look.heading.splitlines()) + (len(series) + 2) // 2
    height = row * total + (_HEADING + _GAP) * len(groups) + _LEGEND_LINE * max(lines - _LEGEND, 0)
    panel = Panel("overview", look.title, look.x_label, "", (_WIDTH / 72, (height + _MARGINS) / 72), place=place)
    rows: list[float] = []
    top = 0.0
    for group in groups:
        panel.axes.text(
            0.012, top + _HEADING - 3.5, group.heading, transform=panel.axes.get_yaxis_transform(), fontsize=9,
            parse_math=False, verticalalignment="baseline",
        )  # fmt: skip
        rows += [top + _HEADING + row * (number + 0.5) for number in range(len(group.matrices))]
        top += _HEADING + row * len(group.matrices) + _GAP
        panel.axes.axhline(top - _GAP / 2, color="#e4e4e4", linewidth=0.8)
    side = min(max(row * 0.75, 2.4), _LARGEST_MARK)
    _draw(panel, series, look, rows, side)
    panel.axes.set_ylim(top, 0)
    panel.axes.set_yticks([])
    panel.axes.grid(visible=False, axis="y")
    reference(panel)
    panel.add_legend(_LARGEST_MARK / side, heading=look.heading)
    return panel


def _draw(panel: Panel, series: Sequence[Marks], look: RowsLook, rows: list[float], side: float) -> None:
    low, high = _limits([figure for marks in series for figure in marks.figures], look)
    drawn = [
        [min(max(figure, low), high) if math.isfinite(figure) else high for figure in marks.figures] for marks in series
    ]
    panel.axes.hlines(
        rows,
        [min(figures) for figures in zip(*drawn, strict=True)],
        [max(figures) for figures in zip(*drawn, strict=True)],
        color="#bbbbbb",
        linewidth=0.15 * side,
        alpha=side / _LARGEST_MARK,
        zorder=1,
    )
    for marks, figures in zip(series, drawn, strict=True):
        panel.axes.scatter(
            figures, rows, s=side * side, color=marks.color, marker=marks.marker, linewidths=min(1.2, side / 3),
            alpha=0.85, label=marks.label,
        )  # fmt: skip
    panel.axes.set_xscale("log")
    panel.axes.set_xlim(low / 1.1, high * 1.1)
    ticks = _ticks(low, high)
    panel.axes.xaxis.set_major_locator(FixedLocator(ticks))
    panel.axes.xaxis.set_minor_locator(NullLocator())
    panel.axes.set_xticklabels([f"{tick:g}" for tick in ticks])


def _limits(figures: Iterable[float], look: RowsLook) -> tuple[float, float]:
    finite = [figure for figure in figures if math.isfinite(figure)]
    low = min([*(figure for figure in finite if figure > 0), look.reaches[0]])
    return max(low, look.least), min(max([*finite, look.reaches[1]]), look.greatest)


def _ticks(low: float, high: float) -> Sequence[float]:
    decades = high / low > 200
    ticks = LogLocator(subs=(1.0,) if decades else (1.0, 2.0, 5.0), numticks=99).tick_values(low, high)
    return [float(tick) for tick in ticks if low / 1.1 <= tick <= high * 1.1]
