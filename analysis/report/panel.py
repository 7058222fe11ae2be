"""Draw small plots of one look, as SVG for a page."""

from __future__ import annotations

import io
import math
import re
from functools import cached_property
from typing import TYPE_CHECKING, Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.ticker import LogFormatter

from lowrank_ldu.formatting import printable

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence
    from pathlib import Path

    import numpy.typing as npt

    Place = Axes | Callable[..., Figure]

# Okabe and Ito's palette, told apart with every common kind of color vision.
COLORS = {
    "partial": "#D55E00",
    "complete": "#0072B2",
    "rook": "#009E73",
    "randomized": "#B5488A",
    "pissa": "#C78500",
    "ldu_lowrank": "#3A9BD9",
    "svd": "#222222",
}
MARKERS = {
    "partial": "o",
    "complete": "s",
    "rook": "^",
    "randomized": "D",
    "pissa": "v",
    "ldu_lowrank": "P",
    "svd": "x",
}
_TEXT = "#222222"
_SUPERSCRIPT = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")
# Margins and ticks are computed around the drawn figures, and must stay in the range of float64.
_LEAST_DRAWN, _GREATEST_DRAWN = 1e-250, 1e250
_DPI = 160  # of the PNG files
_LOOK: Any = {
    "font.size": 11.0,
    "text.color": _TEXT,
    "axes.labelcolor": _TEXT,
    "axes.edgecolor": "#888888",
    "xtick.color": _TEXT,
    "ytick.color": _TEXT,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#e4e4e4",
    "axes.axisbelow": True,
    "svg.fonttype": "path",
    "svg.hashsalt": "lowrank-ldu",  # the same page for the same figures
}


def plain(text: str, longest: int) -> str:
    r"""Return a name in ASCII, shortened to `longest`.

    The plots' font can show it; a name that is too long loses its middle.

    To be drawn with `parse_math=False`: a name may hold dollars.

    Examples
    --------
    >>> plain("größer.than.a.line", 12)
    'gr\\x....line'
    """
    text = printable(text).encode("ascii", "backslashreplace").decode("ascii")
    head = (longest - 3) // 2
    return text if len(text) <= longest else f"{text[:head]}...{text[-(longest - 3 - head) :]}"


def drawable(figures: Iterable[float | None]) -> npt.NDArray[np.float64]:
    """Return the figures that can be drawn, as an array.

    NaN stands for those that are missing, infinite, or too large.

    Examples
    --------
    >>> drawable([2.0, None, float("inf"), 1e308]).tolist()
    [2.0, nan, nan, nan]
    """
    values = np.array([math.nan if figure is None else figure for figure in figures], dtype=np.float64)
    return np.where(np.abs(values) <= _GREATEST_DRAWN, values, math.nan)


def drawable_logarithm(figures: Iterable[float | None]) -> npt.NDArray[np.float64]:
    """Return the figures that a logarithmic axis can show.

    It has no place for zero or what is close to it.
    """
    values = drawable(figures)
    return np.where(values >= _LEAST_DRAWN, values, math.nan)


class _PlainLogFormatter(LogFormatter):
    """Format labels as plain text.

    Laying out the library's formulas takes a fifth of the time of a plot.
    """

    def __call__(self, x: float, pos: int | None = None) -> str:
        if not 0 < x < math.inf:  # a tick beyond the range of float64
            return ""
        if not super().__call__(x, pos):  # ticks without labels, where there are many
            return ""
        power = round(math.log10(x))
        if abs(power) < 4 or not math.isclose(x, 10.0**power):
            return f"{x:g}"
        return "10" + str(power).translate(_SUPERSCRIPT)


class Panel:
    """Build a plot.

    Parameters
    ----------
    name : str
        Unique on the page; letters and hyphens.
    title, x_label, y_label : str
        With the unit in brackets, where there is one.
    size : tuple of float
        Width and height in inches. Text keeps its size, so wide panels are hard to read on narrow screens.
    place : matplotlib.axes.Axes or callable
        Where to draw: a caller's axes, whose figure keeps its size and its look; or what makes a figure, as
        `matplotlib.figure.Figure` does, or `matplotlib.pyplot.figure` for one that is shown.
    """

    def __init__(
        self,
        name: str,
        title: str,
        x_label: str,
        y_label: str,
        size: tuple[float, float] = (4.8, 3.7),
        *,
        place: Place = Figure,
    ) -> None:
        self._name, self._title = name, title
        self._is_callers = isinstance(place, Axes)
        if isinstance(place, Axes):
            self.axes = place
        else:
            with mpl.rc_context(_LOOK):
                self.axes = place(figsize=size, layout="constrained").subplots()
        self.axes.set_title(title, fontsize=12, fontweight="bold", loc="left")
        self.axes.set_xlabel(x_label)
        self.axes.set_ylabel(y_label)

    @property
    def figure(self) -> Any:
        """Figure that the axes are in; of a caller's axes perhaps a part of one."""
        return self.axes.figure

    def scatter(self, x: Sequence[float], y: Sequence[float], method: str, label: str | None) -> None:
        """Draw points with the look of a method."""
        alpha = max(0.4, min(0.8, 12 / max(1, len(x))))
        look: dict[str, Any] = {"color": COLORS[method], "marker": MARKERS[method], "alpha": alpha}
        self.axes.scatter(drawable(x), drawable(y), s=28, label=label, **look)

    def add_legend(self, markerscale: float = 1.0, *, heading: str = "") -> None:
        """Add the legend below the axes, where it hides no data.

        A caller's figure may have no room there: it goes where matplotlib finds the most in the axes, and a heading
        alone, which would hide what is drawn, goes nowhere.

        Its markers are `markerscale` times as large as those drawn. `heading` is shown above them as it is, also with
        dollars in it.
        """
        handles, labels = self.axes.get_legend_handles_labels()
        if self._is_callers and not handles:
            return
        look: dict[str, Any] = {"fontsize": 10, "handletextpad": 0.5, "markerscale": markerscale}
        look |= {"title": heading, "title_fontsize": 10} if heading else {}
        if self._is_callers:
            legend = self.axes.legend(handles, labels, **look)
        else:
            legend = self.figure.legend(handles, labels, loc="outside lower center", ncols=2, frameon=False, **look)
        legend.get_title().set_parse_math(False)
        for handle in legend.legend_handles:
            if handle is not None:
                handle.set_alpha(1.0)  # points are pale where they are many

    def make_logarithmic(self, *, x: bool = False, y: bool = False) -> None:
        """Make axes logarithmic."""
        if x:
            self.axes.set_xscale("log")
        if y:
            self.axes.set_yscale("log")
        for axis in [self.axes.xaxis] * x + [self.axes.yaxis] * y:
            axis.set_major_formatter(_PlainLogFormatter())
            axis.set_minor_formatter(_PlainLogFormatter())

    def mark_ranks(self, ranks: Sequence[int], k: int) -> None:
        """Make the x axis logarithmic, from 1 to k.

        It has ticks at its ends and at these ranks.
        """
        self.make_logarithmic(x=True)
        self.axes.set_xlim(1, k)
        ticks = sorted({1, *(rank for rank in ranks if rank < k), k})
        self.axes.set_xticks(ticks, [str(rank) for rank in ticks])
        self.axes.set_xticks([], minor=True)

    def to_svg(self) -> str:
        """Return the plot as an `<svg>` element.

        A page can hold several of them. Nothing is to be drawn after it.
        """
        text = self._drawn
        text = text[text.index("<svg") :].replace("<svg", f'<svg role="img" aria-label="{self._title}"', 1)
        return re.sub(r'(\bid="|url\(#|href="#)', rf"\g<1>{self._name}-", text)

    def save(self, folder: Path) -> None:
        """Write the plot as PNG and SVG.

        The folder exists. Nothing is to be drawn after it.
        """
        (folder / f"{self._name}.svg").write_text(self._drawn, encoding="utf-8")
        self.figure.dpi = _DPI
        canvas: Any = FigureCanvasAgg(self.figure)
        with mpl.rc_context(_LOOK), np.errstate(over="ignore", under="ignore"):
            canvas.print_png(folder / f"{self._name}.png", metadata={"Software": None})

    @cached_property
    def _drawn(self) -> str:
        buffer = io.StringIO()
        canvas: Any = FigureCanvasSVG(self.figure)
        # Figure.savefig would draw everything once more. Ticks beyond the range of float64 are left out silently.
        with mpl.rc_context(_LOOK), np.errstate(over="ignore", under="ignore"):
            canvas.print_svg(buffer, metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
        self.figure.set_layout_engine("none")  # the axes have their places now
        return buffer.getvalue()


def save_panels(panels: Iterable[Panel], folder: Path) -> None:
    """Write plots as PNG and SVG into the folder `figures` of a report."""
    figures = folder / "figures"
    figures.mkdir(exist_ok=True)
    for panel in panels:
        panel.save(figures)


def draw_band(
    panel: Panel,
    grid: Sequence[float],
    curves: Iterable[tuple[Sequence[float], Sequence[float | None]]],
    *,
    label: str,
    color: str,
    style: str = "-",
) -> None:
    """Draw the median of curves and the band around it.

    Both are taken at the places of `grid`.

    Parameters
    ----------
    panel : Panel
    grid : sequence of float
        Ascending and positive.
    curves : iterable of pairs
        Places, ascending and positive, and the figures there, None where there is none. Between places a curve is
        straight over the logarithm; beyond its ends it does not count.
    label, color, style : str
        Of the line.
    """
    on_grid = np.array([_interpolated(places, figures, grid) for places, figures in curves])
    columns = [column[np.isfinite(column)] for column in on_grid.T]
    low, middle, high = (
        [float(np.quantile(column, share)) if column.size else np.nan for column in columns]
        for share in (0.1, 0.5, 0.9)
    )
    panel.axes.fill_between(grid, low, high, color=color, alpha=0.12, linewidth=0)
    panel.axes.plot(grid, middle, color=color, linestyle=style, linewidth=2, label=label)


def _interpolated(
    places: Sequence[float], figures: Sequence[float | None], grid: Sequence[float]
) -> npt.NDArray[np.float64]:
    result: npt.NDArray[np.float64] = np.interp(
        np.log(grid), np.log(places), drawable(figures), left=np.nan, right=np.nan
    )
    return result
