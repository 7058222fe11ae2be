"""The heat map as a plot."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from lowrank_ldu.analysis.report.plot_panel import Panel, plain
from lowrank_ldu.analysis.report.shades import SCALE, SHADES, power_of_two

if TYPE_CHECKING:
    from lowrank_ldu.analysis.report.heat import HeatMap

_CELL = 0.24  # inches


def heat_panel(heat: HeatMap, title: str) -> Panel:
    """Return the plot of a heat map that has cells, a row for each module type and a column for each layer."""
    values = np.full((len(heat.modules), len(heat.layers)), np.nan)
    for (module, layer), cell in heat.cells.items():
        values[heat.modules.index(module), heat.layers.index(layer)] = power_of_two(cell.error)
    size = (max(4.8, 2.6 + _CELL * len(heat.layers)), max(2.4, 1.5 + _CELL * len(heat.modules)))
    panel = Panel("heat-map", title, "layer", "", size)
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
