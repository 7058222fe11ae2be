"""Draw the heat map: what is left of the weights, layers by module types."""

from __future__ import annotations

from dataclasses import dataclass
from statistics import median
from typing import TYPE_CHECKING

import numpy as np
from matplotlib import colormaps
from matplotlib.colors import Colormap, Normalize, to_hex
from matplotlib.figure import Figure

from lowrank_ldu.analysis.report.advice import advice_of
from lowrank_ldu.analysis.report.panel import Panel, plain
from lowrank_ldu.analysis.report.places import places_of

if TYPE_CHECKING:
    from lowrank_ldu.analysis.report.advice import Advice
    from lowrank_ldu.analysis.report.panel import Place
    from lowrank_ldu.analysis.result import Analysis

SHADES: Colormap = colormaps["Blues_r"]
# Shares of a weight's numbers, from nothing to all of it.
SCALE = Normalize(0.0, 1.0, clip=True)
_LIGHT = 0.45


def shade(share: float) -> str:
    """Return the color of what is left of a weight: dark where that is little.

    Examples
    --------
    >>> [shade(share) for share in (0.0, 0.5, 1.0)]
    ['#08306b', '#6caed6', '#f7fbff']
    """
    return to_hex(SHADES(SCALE(share)))


def ink(share: float) -> str:
    """Return the color of text on `shade(share)`."""
    return "#fff" if share < _LIGHT else "#222"


@dataclass(frozen=True)
class HeatCell:
    """Hold what is recommended for one module type in one layer.

    Attributes
    ----------
    share : float
        Numbers of the recommended factors over those of the weight, 1 where it is kept; the median over its matrices.
    matrices : int
        How many they are: more than one where a layer has several experts, say.
    worst : str
        Name of the one of which most is left.
    advice : str
        What is recommended for that one, in a few words.
    """

    share: float
    matrices: int
    worst: str
    advice: str

    @property
    def text(self) -> str:
        """The share in words."""
        return f"{self.share:.0%}" if self.share < 1.0 else "keep"


@dataclass(frozen=True)
class HeatMap:
    """Hold what is recommended by layer and module type.

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
    """Arrange what is recommended by layer and module type.

    Names tell both (`places_of`).
    """
    found = places_of(analysis)
    advice: dict[tuple[str, int | None], dict[str, Advice]] = {}
    for tensor, matrix in analysis.matrices:
        place = found[tensor.name]
        advice.setdefault((place.module, place.layer), {})[tensor.name] = advice_of(matrix)
    cells: dict[tuple[str, int], HeatCell] = {}
    apart: dict[str, HeatCell] = {}
    for (module, layer), named in advice.items():
        if layer is None:
            apart |= {name: _cell({name: each}) for name, each in named.items()}
        else:
            cells[module, layer] = _cell(named)
    return HeatMap(
        modules=list(dict.fromkeys(module for module, _ in cells)),
        layers=sorted({layer for _, layer in cells}),
        cells=cells,
        apart=apart,
    )


def _cell(named: dict[str, Advice]) -> HeatCell:
    worst = max(named, key=lambda name: named[name].share)
    return HeatCell(median(each.share for each in named.values()), len(named), worst, named[worst].short)


def heat_title(analysis: Analysis) -> str:
    """Return what the heat map shows, for its title."""
    return f"Left at an error of {max(analysis.options.targets):g}"


_CELL = 0.24  # inches


def heat_panel(heat: HeatMap, title: str, place: Place = Figure) -> Panel:
    """Draw a heat map that has cells.

    A row for each module type and a column for each layer.
    """
    values = np.full((len(heat.modules), len(heat.layers)), np.nan)
    for (module, layer), cell in heat.cells.items():
        values[heat.modules.index(module), heat.layers.index(layer)] = cell.share
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
    bar = panel.figure.colorbar(image, ax=panel.axes, label="numbers left", aspect=12)
    bar.set_ticks([0, 0.25, 0.5, 0.75, 1], labels=["0 %", "25 %", "50 %", "75 %", "keep"])
    return panel
