"""Draw the ratios to the frozen layer as bars."""

from __future__ import annotations

from typing import TYPE_CHECKING

import matplotlib as mpl
from matplotlib.figure import Figure

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from matplotlib.axes import Axes

    from lowrank_ldu.measuring.table import Row

_OURS, _OTHERS, _FROZEN = "#0072b2", "#999999", "#333333"
_PER_ROW = 2
# Bars beyond this are cut, with their length written on them.
_LONGEST = 6.0


def write_plots(rows: Sequence[Row], folder: Path) -> list[Path]:
    """Write ratios.png and ratios.svg, and return their paths."""
    panels: dict[tuple[object, ...], list[Row]] = {}
    for row in rows:
        panels.setdefault((row.m, row.n, row.tokens, row.rank, row.dtype, row.mode), []).append(row)
    columns = min(_PER_ROW, len(panels))
    lines = -(-len(panels) // columns)
    tallest = max(map(len, panels.values()))
    mpl.rcParams["svg.fonttype"] = "none"
    figure = Figure(figsize=(8.0 * columns, (1.2 + 0.34 * tallest) * lines), layout="constrained")
    axes = figure.subplots(lines, columns, squeeze=False)
    for place, members in zip(axes.flat, panels.values(), strict=False):
        _panel(place, members)
    for place in axes.flat[len(panels) :]:
        place.set_visible(False)
    first = rows[0]
    threads = f", {first.threads} threads" if first.device == "cpu" else ""
    busy = f", beside {first.neighbors} busy process{'es' * (first.neighbors > 1)}" if first.neighbors else ""
    figure.suptitle(f"{first.device_name}{threads}, torch {first.torch}{busy}", fontsize=10)
    paths = [folder / "ratios.png", folder / "ratios.svg"]
    for path in paths:
        figure.savefig(path, dpi=130)
    return paths


def _panel(axes: Axes, rows: Sequence[Row]) -> None:
    rows = rows[::-1]  # bars are drawn from below
    frozen = next((row.p50_ms for row in rows if not row.plan and row.ratio == 1), rows[-1].p50_ms)
    shown = [min(row.ratio, _LONGEST) for row in rows]
    colors = [_OURS if row.plan else _FROZEN if row.ratio == 1 else _OTHERS for row in rows]
    axes.barh(range(len(rows)), shown, color=colors, height=0.7)
    for place, row in enumerate(rows):
        if row.ratio <= _LONGEST:
            spread = [[row.ratio - row.p20_ms / frozen], [row.p80_ms / frozen - row.ratio]]
            axes.errorbar(row.ratio, place, xerr=[[max(0.0, *side)] for side in spread], color="black", capsize=2)
        end = max(min(row.ratio, _LONGEST), min(row.p80_ms / frozen, _LONGEST))
        axes.text(end + 0.06, place, f"{row.ratio:.2f}", va="center", fontsize=8)
    axes.axvline(1.0, color="#555555", linewidth=1, linestyle=":")
    axes.set_yticks(range(len(rows)), [row.label for row in rows], fontsize=8)
    axes.set_xlim(0, min(_LONGEST, max(max(row.ratio, row.p80_ms / frozen) for row in rows)) * 1.15)
    first = rows[0]
    mode = "forward + backward" if first.mode == "training" else "forward"
    axes.set_title(
        f"{first.m} x {first.n}, T = {first.tokens}, r = {first.rank}, {first.dtype}: {mode}", fontsize=9, loc="left"
    )
    axes.set_xlabel(f"time / frozen nn.Linear ({frozen:.3g} ms)", fontsize=8)
    axes.spines[["top", "right"]].set_visible(False)
