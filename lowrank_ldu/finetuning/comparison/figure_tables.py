"""Make tables of the figures that no choice is made by."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from lowrank_ldu.finetuning.comparison.plots import in_percent

if TYPE_CHECKING:
    import pandas as pd

    from lowrank_ldu.finetuning.comparison.plan import Plan

FIGURE_HEADINGS = ("figure", "method", "mean", "95 %", "seed sd", "seeds", "difference", "95 %", "paper")


def figure_rows(figures: pd.DataFrame, task: str) -> list[tuple[str, ...]]:
    """Return the cells of a task's table of further figures, a row for each figure and entry.

    Parameters
    ----------
    figures : pandas.DataFrame
        Of `figures_frame`.
    task : str

    Returns
    -------
    list of tuple of str
        Cells for `FIGURE_HEADINGS`; "-" is what there is none of.
    """
    rows = figures[(figures["task"] == task) & ~figures["judged"].astype(bool)]
    cells = []
    for _, group in rows.groupby("figure", sort=False):
        records = group.to_dict("records")
        names = [each["metric"] for each in records if isinstance(each["metric"], str)]
        # lm-eval gives some shares in per cent.
        percent = bool(names) and in_percent(names[0]) and not (group["mean"].abs() > 1).any()
        cells += [_cells(record, *((100, 1) if percent else (1, 3))) for record in records]
    return cells


def _cells(row: dict[str, Any], factor: int, digits: int) -> tuple[str, ...]:
    def told(*values: float, sign: str = "") -> str:
        if any(math.isnan(value) for value in values):
            return "-"
        return " to ".join(f"{factor * value:{sign}.{digits}f}" for value in values)

    return (
        row["figure"],
        row["title"],
        told(row["mean"]),
        told(row["low"], row["high"]),
        told(row["sd_of_seeds"]),
        f"{row['seeds']:.0f} of {row['seeds_planned']}",
        told(row["difference"], sign="+"),
        told(row["difference_low"], row["difference_high"], sign="+"),
        "-" if math.isnan(row["paper"]) else f"{row['paper']:g}",
    )


def figure_sentences(plan: Plan, figures: pd.DataFrame, task: str) -> list[str]:
    """Say in words what the table of further figures shows, and why some are missing.

    Parameters
    ----------
    plan : Plan
    figures : pandas.DataFrame
        Of `figures_frame`.
    task : str

    Returns
    -------
    list of str
    """
    rows = figures[(figures["task"] == task) & ~figures["judged"].astype(bool)]
    if not (rows["seeds"] > 0).any() and rows["missing"].isna().all():
        return ["No run has further figures yet."]
    reference = next(entry for entry in plan.selection.entries if entry.name == plan.selection.reference)
    told = [
        "Further figures, by which nothing was chosen: mean over seeds.",
        "One seed has no interval."
        if rows["seeds"].max() <= 1
        else "Their intervals cover seeds alone: the rows that they are of are not kept.",
        f"Difference: from {reference.title}, with the same seeds.",
    ]
    without = rows[rows["missing"].notna()]
    for (figure, reason), group in without.groupby(["figure", "missing"], sort=False):
        told.append(f"{figure} is missing for {', '.join(group['title'])}: {reason}.")
    return told
