"""Curves of many matrices as one: their median, in a band that holds the middle 80 % of them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from lowrank_ldu.analysis.report.plot_panel import drawable

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    import numpy.typing as npt

    from lowrank_ldu.analysis.report.plot_panel import Panel


def draw_band(
    panel: Panel,
    grid: Sequence[float],
    curves: Iterable[tuple[Sequence[float], Sequence[float | None]]],
    *,
    label: str,
    colour: str,
    style: str = "-",
) -> None:
    """Draw the median of `curves` at the places of `grid`, and the band around it.

    Parameters
    ----------
    panel : Panel
    grid : sequence of float
        Ascending and positive.
    curves : iterable of pairs
        Places, ascending and positive, and the figures there, None where there is none. Between places a curve is
        straight over the logarithm; beyond its ends it does not count.
    label, colour, style : str
        Of the line.
    """
    on_grid = np.array([_interpolated(places, figures, grid) for places, figures in curves])
    columns = [column[np.isfinite(column)] for column in on_grid.T]
    low, middle, high = (
        [float(np.quantile(column, share)) if column.size else np.nan for column in columns]
        for share in (0.1, 0.5, 0.9)
    )
    panel.axes.fill_between(grid, low, high, color=colour, alpha=0.12, linewidth=0)
    panel.axes.plot(grid, middle, color=colour, linestyle=style, linewidth=2, label=label)


def _interpolated(
    places: Sequence[float], figures: Sequence[float | None], grid: Sequence[float]
) -> npt.NDArray[np.float64]:
    result: npt.NDArray[np.float64] = np.interp(
        np.log(grid), np.log(places), drawable(figures), left=np.nan, right=np.nan
    )
    return result
