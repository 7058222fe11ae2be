"""Draw a heat map: one figure of each matrix, layers by module types."""

from __future__ import annotations

from dataclasses import dataclass
from statistics import median
from typing import TYPE_CHECKING

import numpy as np
from matplotlib import colormaps
from matplotlib.colors import Colormap, Normalize, to_hex
from matplotlib.figure import Figure

from lowrank_ldu.analysis.report.panel import Panel, plain

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from lowrank_ldu.analysis.report.panel import Place
    from lowrank_ldu.analysis.report.places import ModulePlace

SHADES: Colormap = colormaps["Blues_r"]
SCALE = Normalize(0.0, 1.0, clip=True)
_LIGHT = 0.45


def shade(at: float) -> str:
    """Return the color of a place on a scale from 0, which is dark, to 1.

    Examples
    --------
    >>> [shade(at) for at in (0.0, 0.5, 1.0)]
    ['#08306b', '#6caed6', '#f7fbff']
    """
    return to_hex(SHADES(SCALE(at)))


def ink(at: float) -> str:
    """Return the color of text on `shade(at)`."""
    return "#fff" if at < _LIGHT else "#222"


@dataclass(frozen=True)
class HeatScale:
    """Say how figures are shown.

    Attributes
    ----------
    place : callable
        From a figure to its place on the scale of colors, from 0 to 1.
    write : callable
        From a figure to its text.
    label : str
        What the figures are.
    ticks : sequence of tuple of (float, str)
        Places that are labeled, and the labels.
    """

    place: Callable[[float], float]
    write: Callable[[float], str]
    label: str
    ticks: Sequence[tuple[float, str]]


@dataclass(frozen=True)
class HeatCell:
    """Hold the figure of one module type in one layer.

    Attributes
    ----------
    figure : float
        The median over its matrices.
    matrices : int
        How many they are: more than one where a layer has several experts, say.
    most : str
        Name of the one with the greatest figure.
    words : str
        What is said of that one, in a few words.
    at : float
        The figure's place on the scale of colors.
    text : str
        The figure in words.
    """

    figure: float
    matrices: int
    most: str
    words: str
    at: float
    text: str


@dataclass(frozen=True)
class HeatMap:
    """Hold figures by layer and module type.

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
    scale : HeatScale
    """

    modules: list[str]
    layers: list[int]
    cells: dict[tuple[str, int], HeatCell]
    apart: dict[str, HeatCell]
    scale: HeatScale


def arrange(
    figures: Mapping[str, float], words: Mapping[str, str], places: Mapping[str, ModulePlace], scale: HeatScale
) -> HeatMap:
    """Arrange figures by layer and module type.

    Parameters
    ----------
    figures, words : mapping of str
        The figure of each matrix, by its name, and what is said of it.
    places : mapping of str to ModulePlace
        As of `places_of`.
    scale : HeatScale
    """
    groups: dict[tuple[str, int | None], list[str]] = {}
    for name in figures:
        groups.setdefault((places[name].module, places[name].layer), []).append(name)

    def cell(names: list[str]) -> HeatCell:
        middle = median(figures[name] for name in names)
        most = max(names, key=figures.__getitem__)
        return HeatCell(middle, len(names), most, words[most], scale.place(middle), scale.write(middle))

    cells: dict[tuple[str, int], HeatCell] = {}
    apart: dict[str, HeatCell] = {}
    for (module, layer), names in groups.items():
        if layer is None:
            apart |= {name: cell([name]) for name in names}
        else:
            cells[module, layer] = cell(names)
    return HeatMap(
        modules=list(dict.fromkeys(module for module, _ in cells)),
        layers=sorted({layer for _, layer in cells}),
        cells=cells,
        apart=apart,
        scale=scale,
    )


_CELL = 0.24  # inches


def heat_panel(heat: HeatMap, title: str, place: Place = Figure) -> Panel:
    """Draw a heat map that has cells.

    A row for each module type and a column for each layer.
    """
    values = np.full((len(heat.modules), len(heat.layers)), np.nan)
    for (module, layer), cell in heat.cells.items():
        values[heat.modules.index(module), heat.layers.index(layer)] = cell.at
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
    bar = panel.figure.colorbar(image, ax=panel.axes, label=heat.scale.label, aspect=12)
    bar.set_ticks([at for at, _ in heat.scale.ticks], labels=[text for _, text in heat.scale.ticks])
    return panel
