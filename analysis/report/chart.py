"""Lay out small line charts for a template.

Written by hand, since hundreds of them cost less than one figure of a plotting library.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from matplotlib.ticker import LogLocator

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

WIDTH, HEIGHT = 420, 250  # of the plotting area
_ROOM = 1.15  # between the lines and the end of the axis
_TINY, _HUGE = 1e-300, 1e300


@dataclass(frozen=True)
class Series:
    """A line to draw.

    Attributes
    ----------
    look : str
        Names of classes of the style sheet.
    figures : sequence of float or None
        None and what has no logarithm leave a gap.
    """

    look: str
    figures: Sequence[float | None]


@dataclass(frozen=True)
class Tick:
    """A line of the grid and its label."""

    at: int
    text: str


@dataclass(frozen=True)
class Chart:
    """A chart with logarithmic axes, in units of the drawing.

    Attributes
    ----------
    title, x_label, y_label : str
    lines : list of tuple of (str, str)
        Look, and the data of an SVG path.
    x_ticks, y_ticks : list of Tick
    mark : int or None
        Height of the line that is marked, where it is within the axis.
    """

    title: str
    x_label: str
    y_label: str
    lines: list[tuple[str, str]]
    x_ticks: list[Tick]
    y_ticks: list[Tick]
    mark: int | None


def draw_chart(
    labels: tuple[str, str, str],
    places: Sequence[int],
    series: Iterable[Series],
    *,
    marked_ranks: Iterable[int],
    least: float = 0.0,
    mark: float | None = None,
) -> Chart:
    """Lay out a chart with logarithmic axes.

    Parameters
    ----------
    labels : tuple of str
        Title, x label and y label.
    places : sequence of int
        Of the figures of every series: ascending, at least 1.
    series : iterable of Series
    marked_ranks : iterable of int
        Where the x axis has ticks, beside its ends.
    least : float
        Where the y axis is to end at the latest; figures below leave the chart.
    mark : float, optional
        A figure to mark by a line; the y axis is made to hold it.
    """
    series = list(series)
    drawn = [
        figure
        for line in series
        for figure in line.figures
        if figure is not None and max(least, _TINY) < figure < _HUGE
    ]
    drawn += [] if mark is None else [mark]
    low, high = min(drawn, default=1.0) / _ROOM, max(drawn, default=1.0) * _ROOM
    y = _Axis(max(low, least, _TINY), high, HEIGHT, 0)
    x = _Axis(1, max(places[-1], 2), 0, WIDTH)
    ranks = sorted({1, *(rank for rank in marked_ranks if rank < places[-1]), places[-1]})
    return Chart(
        *labels,
        lines=[(line.look, _path([x.at(place) for place in places], line.figures, y)) for line in series],
        x_ticks=_apart([Tick(x.at(rank), str(rank)) for rank in ranks], 30),
        y_ticks=_apart([Tick(y.at(tick), f"{tick:g}") for tick in _ticks(y.low, y.high)], 14),
        mark=None if mark is None else y.at(mark),
    )


@dataclass(frozen=True)
class _Axis:
    """A logarithmic axis of a chart.

    It goes from `low`, drawn at `start`, to `high`, drawn at `end`.
    """

    low: float
    high: float
    start: int
    end: int

    def at(self, figure: float) -> int:
        low, high = math.log(self.low), math.log(self.high)  # their ratio may overflow
        share = (math.log(figure) - low) / (high - low)
        return round(self.start + share * (self.end - self.start))


def _path(across: Sequence[int], figures: Sequence[float | None], y: _Axis) -> str:
    parts: list[str] = []
    letter = "M"
    for place, figure in zip(across, figures, strict=True):
        if figure is None or not _TINY < figure < _HUGE:
            letter = "M"
            continue
        # Figures below the axis leave the chart by 50 units at most.
        parts.append(f"{letter}{place} {min(y.at(figure), HEIGHT + 50)}")
        letter = "L"
    return "".join(parts)


def _ticks(low: float, high: float) -> list[float]:
    steps = (1.0,) if low < high / 200 else (1.0, 2.0, 5.0)
    return [float(tick) for tick in LogLocator(subs=steps, numticks=8).tick_values(low, high) if low <= tick <= high]


def _apart(ticks: list[Tick], least: int) -> list[Tick]:
    """Leave out ticks whose labels would overlap.

    The last one stays.
    """
    kept: list[Tick] = []
    for tick in reversed(ticks):
        if not kept or abs(kept[-1].at - tick.at) >= least:
            kept.append(tick)
    return kept[::-1]
