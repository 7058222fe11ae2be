"""Draw the scores of methods against their size, or against a setting."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from lowrank_ldu.analysis import Panel
from lowrank_ldu.finetuning.comparison.frames import bounds_of

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    import pandas as pd

_SIZE = (7.2, 5.0)
# Okabe and Ito's palette: forms of LDU in blue and green, whole or partial fine-tuning in gray, the others between.
_LDU = ("#0072B2", "#009E73", "#3A9BD9", "#004C77", "#66C2A5", "#1B7837")
_WHOLE = ("#222222", "#777777", "#AAAAAA")
_OTHERS = ("#D55E00", "#B5488A", "#C78500", "#8C510A", "#E377C2", "#BF812D", "#A6761D", "#E7298A", "#7B3294")
_MARKERS = "osD^vP*X<>hd"


def in_percent(metric: str) -> bool:
    """Say whether a metric is shown times a hundred, as papers print it."""
    return math.isfinite(bounds_of(metric)[0])


def score_panel(methods: pd.DataFrame, task: str) -> Panel:
    """Draw the score of each entry against its trained numbers.

    As in the paper's figure 1: the axis of the numbers is logarithmic and the head is not counted. A line joins the
    entries of one family. What trains no number beside the head is a horizontal line.

    Parameters
    ----------
    methods : pandas.DataFrame
        Of `methods_frame`.
    task : str

    Returns
    -------
    Panel
    """
    rows = methods[(methods["task"] == task) & methods["mean"].notna()]
    metric, split = rows["metric"].iloc[0], rows["split"].iloc[0]
    factor = 100 if in_percent(metric) else 1
    unit = " (%)" if factor == 100 else ""
    title = f"{task}: {metric} against trained numbers"
    panel = Panel(f"scores-{task}", title, "trained numbers, without the head", f"{split} {metric}{unit}", _SIZE)
    for (label, group), (color, marker) in zip(_families(rows), _looks(rows), strict=True):
        if (group["numbers"] == 0).all():
            panel.axes.axhline(factor * group["mean"].iloc[0], color=color, linestyle=":", label=label)
            continue
        panel.axes.errorbar(
            group["numbers"],
            factor * group["mean"],
            yerr=_errors(group, factor),
            linestyle="-" if group["numbers"].is_unique else "none",
            color=color,
            marker=marker,
            markersize=6,
            capsize=3,
            elinewidth=0.8,
            linewidth=1.2,
            label=label,
        )
    panel.make_logarithmic(x=True)
    panel.add_legend()
    return panel


def _errors(group: pd.DataFrame, factor: float) -> Any:
    """Return the lengths of error bars, below and above."""
    if group["low"].isna().any():
        return None
    return [factor * (group["mean"] - group["low"]), factor * (group["high"] - group["mean"])]


def _families(rows: pd.DataFrame) -> Iterator[tuple[str, pd.DataFrame]]:
    """Go through the lines of a plot: a family's name, and its rows by their size."""
    for family, group in rows.groupby(rows["family"], sort=False):
        yield str(family), group.sort_values("numbers")


def _looks(rows: pd.DataFrame) -> Iterator[tuple[str, str]]:
    counts = {"ldu": 0, "whole": 0, "others": 0}
    for place, (_, group) in enumerate(_families(rows)):
        method = group["method"].iloc[0]
        kind = "ldu" if "ldu" in method else "whole" if method in {"full", "head", "bitfit"} else "others"
        colors = {"ldu": _LDU, "whole": _WHOLE, "others": _OTHERS}[kind]
        yield colors[counts[kind] % len(colors)], _MARKERS[place % len(_MARKERS)]
        counts[kind] += 1


def sweep_panel(methods: pd.DataFrame, key: str, values: Mapping[str, float]) -> Panel:
    """Draw the score on each task against a setting of the entries.

    As in the paper's figures 4, against the rank, and 7, against the learning rate; the paper's own scores are dashed.

    Parameters
    ----------
    methods : pandas.DataFrame
        Of `methods_frame`.
    key : str
        Name of the setting, "r" or "learning_rate".
    values : mapping
        Entry to its value of the setting, a positive number.

    Returns
    -------
    Panel
    """
    rows = methods.assign(value=methods["entry"].map(values)).dropna(subset=["value", "mean"]).sort_values("value")
    metrics = list(rows["metric"].unique())
    factor = 100 if all(map(in_percent, metrics)) else 1
    name, unit = ", ".join(metrics), " (%)" if factor == 100 else ""
    panel = Panel(f"sweep-{key}", f"{name} against {key}", key, f"{name}{unit}", _SIZE)
    colors, several = [*_LDU, *_OTHERS], len(set(rows["family"])) > 1
    for place, ((task, family), group) in enumerate(rows.groupby(["task", "family"], sort=False)):
        look: dict[str, Any] = {"color": colors[place % len(colors)], "marker": _MARKERS[place % len(_MARKERS)]}
        label = f"{task}, {family}" if several else str(task)
        bars = {"yerr": _errors(group, factor), "capsize": 3, "elinewidth": 0.8}
        panel.axes.errorbar(group["value"], factor * group["mean"], label=label, **bars, **look)
        if group["paper"].notna().any():
            paper = group["paper"] * factor / 100
            panel.axes.plot(group["value"], paper, linestyle="--", alpha=0.5, label=f"{label}, paper", **look)
    panel.make_logarithmic(x=True)
    panel.add_legend()
    return panel
