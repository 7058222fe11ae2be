"""Draw the heat map: layers by module types."""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import median
from typing import TYPE_CHECKING

import numpy as np
from matplotlib import colormaps
from matplotlib.colors import Colormap, Normalize, to_hex
from matplotlib.figure import Figure

from lowrank_ldu.analysis.report.panel import Panel, plain
from lowrank_ldu.analysis.report.places import places_of
from lowrank_ldu.analysis.report.scope import headline_matrices

if TYPE_CHECKING:
    from lowrank_ldu.analysis.report.panel import Place
    from lowrank_ldu.analysis.result import Analysis

SHADES: Colormap = colormaps["RdBu_r"]
# In powers of two: from a quarter to four times the error of the zero matrix.
SCALE = Normalize(-2.0, 2.0, clip=True)


def shade(error: float) -> str:
    """Return the color of an error.

    Examples
    --------
    >>> [shade(error) for error in (0.0, 1.0, float("inf"))]
    ['#053061', '#f7f6f6', '#67001f']
    """
    return to_hex(SHADES(SCALE(power_of_two(error))))


def ink(error: float) -> str:
    """Return the color of text on `shade(error)`."""
    return "#fff" if abs(power_of_two(error)) > 1.2 else "#222"


def power_of_two(error: float) -> float:
    """Return the binary logarithm of an error, clipped to the scale."""
    if error <= 0.0:
        return -2.0
    return min(max(math.log2(error), -2.0), 2.0)


@dataclass(frozen=True)
class HeatCell:
    """Hold the errors of one module type in one layer.

    Attributes
    ----------
    error, svd_error : float
        Medians over its matrices.
    matrices : int
        How many they are: more than one where a layer has several experts, say.
    worst : str
        Name of the one with the largest error.
    """

    error: float
    svd_error: float
    matrices: int
    worst: str


@dataclass(frozen=True)
class HeatMap:
    """Hold the errors by layer and module type.

    Attributes
    ----------
    modules : list of str
        In the order of the checkpoint.
    layers : list of int
        Ascending.
    cells : dict of tuple of (str, int) to HeatCell
        There is none where a layer has no such module.
    apart : dict of str to HeatCell
        By name, the matrices outside layers.
    """

    modules: list[str]
    layers: list[int]
    cells: dict[tuple[str, int], HeatCell]
    apart: dict[str, HeatCell]


def heat_map(analysis: Analysis) -> HeatMap:
    """Arrange the errors by layer and module type.

    Names tell both (`places_of`). Matrices that the headline rank is low for, with the first pivoting.
    """
    chosen = headline_matrices(analysis)
    found = places_of(analysis)
    errors: dict[tuple[str, int | None], dict[str, tuple[float, float]]] = {}
    for tensor, matrix in chosen:
        figures = matrix.at("ldu", analysis.headline_rank, analysis.options.pivoting[0]).diagnostics
        place = found[tensor.name]
        at_place = errors.setdefault((place.module, place.layer), {})
        at_place[tensor.name] = (figures.frobenius_error, figures.svd_frobenius_error)
    cells: dict[tuple[str, int], HeatCell] = {}
    apart: dict[str, HeatCell] = {}
    for (module, layer), named in errors.items():
        if layer is None:
            apart |= {name: _cell({name: pair}) for name, pair in named.items()}
        else:
            cells[module, layer] = _cell(named)
    return HeatMap(
        modules=list(dict.fromkeys(module for module, _ in cells)),
        layers=sorted({layer for _, layer in cells}),
        cells=cells,
        apart=apart,
    )


def _cell(named: dict[str, tuple[float, float]]) -> HeatCell:
    return HeatCell(
        error=median(error for error, _ in named.values()),
        svd_error=median(least for _, least in named.values()),
        matrices=len(named),
        worst=max(named, key=lambda name: named[name][0]),
    )


def heat_title(analysis: Analysis) -> str:
    """Return what the heat map shows, for its title."""
    return f"LDU error, {analysis.options.pivoting[0]}, rank {analysis.headline_rank}"


_CELL = 0.24  # inches


def heat_panel(heat: HeatMap, title: str, place: Place = Figure) -> Panel:
    """Draw a heat map that has cells.

    A row for each module type and a column for each layer.
    """
    values = np.full((len(heat.modules), len(heat.layers)), np.nan)
    for (module, layer), cell in heat.cells.items():
        values[heat.modules.index(module), heat.layers.index(layer)] = power_of_two(cell.error)
    size = (max(4.8, 2.6 + _CELL * len(heat.layers)), max(2.4, 1.5 + _CELL * len(heat.modules)))
    panel = Panel("heat-map", title, "layer", "", size, place=place)
    image = panel.axes.pcolormesh(values, cmap=SHADES, norm=SCALE, edgecolors="white", linewidth=0.5)
    panel.axes.invert_yaxis()
    panel.axes.grid(visible=False)
    step = -(-len(heat.layers) // 20)
    panel.axes.set_xticks(
        [number + 0.5 for number in range(0, len(heat.layers), step)], [str(layer) for layer in heat.layers[::step]]
    )
    panel.axes.set_yticks(
        [number + 0.5 for number in range(len(heat.modules))],
        [plain(module, 36) for module in heat.modules],
        fontsize=9,
        parse_math=False,
    )
    bar = panel.figure.colorbar(image, ax=panel.axes, label="relative Frobenius error", aspect=12)
    bar.set_ticks([-2, -1, 0, 1, 2], labels=["≤ ¼", "½", "1", "2", "≥ 4"])
    return panel
