"""Write what a comparison came to: tables, frames and plots."""

from __future__ import annotations

import io
import math
from typing import TYPE_CHECKING, Any

from lowrank_ldu.errors import OutputError
from lowrank_ldu.files import replace_file
from lowrank_ldu.finetuning.comparison.figure_tables import FIGURE_HEADINGS, figure_rows, figure_sentences
from lowrank_ldu.finetuning.comparison.figures import figures_frame
from lowrank_ldu.finetuning.comparison.frames import methods_frame, runs_frame
from lowrank_ldu.finetuning.comparison.plots import in_percent, score_panel, sweep_panel
from lowrank_ldu.formatting import duration
from lowrank_ldu.validation import shown

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    import pandas as pd

    from lowrank_ldu.finetuning.comparison.compare import Trained
    from lowrank_ldu.finetuning.comparison.plan import Plan

HEADINGS = (
    "method",
    "numbers",
    "score",
    "95 %",
    "seed sd",
    "seeds",
    "difference",
    "95 %",
    "setting",
    "time",
    "MB",
    "kB",
    "paper",
)


def write_comparison(plan: Plan, trained: Sequence[Trained]) -> pd.DataFrame:
    """Write the frames, the tables and the plots into the comparison's folder.

    `runs` and `methods` as .csv, .json and .parquet, and `figures` where the comparison names further ones; `table.md`,
    and a plot for each task as .png and .svg.

    Parameters
    ----------
    plan : Plan
    trained : sequence of Trained

    Returns
    -------
    pandas.DataFrame
        Of `methods_frame`.
    """
    methods = methods_frame(plan, trained)
    try:
        _write_all(plan, trained, methods)
    except OSError as error:
        raise OutputError(f"{plan.out}: cannot be written ({error.strerror}); the runs are kept") from error
    return methods


def _write_all(plan: Plan, trained: Sequence[Trained], methods: pd.DataFrame) -> None:
    folder = plan.out / "plots"
    folder.mkdir(parents=True, exist_ok=True)
    figures = figures_frame(plan, trained, methods) if plan.selection.metrics else None
    for name, frame in (("runs", runs_frame(trained)), ("methods", methods), ("figures", figures)):
        if frame is not None:
            _write(frame, plan.out / name)
    replace_file(plan.out / "table.md", _markdown(plan, methods, figures).encode())
    for task in plan.tasks:
        if methods.loc[methods["task"] == task, "mean"].notna().any():
            score_panel(methods, task).save(folder)
    if plan.selection.sweep is not None:
        there = set(methods.loc[methods["mean"].notna(), "entry"])
        settings = {entry.name: entry.settings.get(plan.selection.sweep) for entry in plan.selection.entries}
        values = {name: value for name, value in settings.items() if value and name in there}
        if values:
            sweep_panel(methods, plan.selection.sweep, values).save(folder)


def _write(frame: pd.DataFrame, stem: Path) -> None:
    buffer = io.BytesIO()
    frame.to_parquet(buffer, index=False)
    replace_file(stem.with_suffix(".parquet"), buffer.getvalue())
    replace_file(stem.with_suffix(".csv"), frame.to_csv(index=False).encode())
    replace_file(stem.with_suffix(".json"), frame.to_json(orient="records", indent=1).encode())


def table_rows(methods: pd.DataFrame, task: str) -> list[tuple[str, ...]]:
    """Return the cells of a task's table, a row for each entry.

    Parameters
    ----------
    methods : pandas.DataFrame
        Of `methods_frame`.
    task : str

    Returns
    -------
    list of tuple of str
        Cells for `HEADINGS`.
    """
    return [_cells(row) for row in methods[methods["task"] == task].to_dict("records")]


def _cells(row: dict[str, Any]) -> tuple[str, ...]:
    state = state_of(row)
    if state is not None:
        return (row["title"], state, *[""] * (len(HEADINGS) - 2))
    factor, digits = (100, 1) if in_percent(row["metric"]) else (1, 4)

    def shown(*values: float, sign: str = "") -> str:
        if any(math.isnan(value) for value in values):
            return "-"
        return " to ".join(f"{factor * value:{sign}.{digits}f}" for value in values)

    paper = "-" if math.isnan(row["paper"]) else f"{row['paper']:g}"
    if not math.isnan(row["paper_numbers"]):
        paper += f" ({row['paper_numbers']:,.0f})"
    return (
        row["title"],
        f"{row['numbers']:,.0f}",
        f"{shown(row['mean'])} ({shown(row['median'])})",
        shown(row["low"], row["high"]),
        shown(row["sd_of_seeds"]),
        f"{row['seeds']} of {row['seeds_planned']}" + (f", {row['failed']} failed" if row["failed"] else ""),
        shown(row["difference"], sign="+"),
        shown(row["difference_low"], row["difference_high"], sign="+"),
        row["setting"],
        duration(round(row["seconds"])),
        f"{row['peak_memory_bytes'] / 1e6:,.0f}",
        f"{row['adapter_bytes'] / 1e3:,.1f}",
        paper,
    )


def state_of(row: Mapping[str, Any]) -> str | None:
    """Return why an entry has no score, or None where it has one.

    Parameters
    ----------
    row : mapping
        Of `methods_frame`.
    """
    # pandas may have made a NaN of a None.
    if isinstance(row["unavailable"], str):
        return f"not available: {row['unavailable']}"
    if row["seeds"]:
        return None
    return "every run failed: the loss was no number" if row["failed"] else "not finished"


def sentences(plan: Plan, methods: pd.DataFrame, task: str) -> list[str]:
    """Say in words what the table of a task shows."""
    rows = methods[(methods["task"] == task) & (methods["seeds"] > 0)]
    if rows.empty:
        return ["Nothing is finished."]
    reference = next(entry for entry in plan.selection.entries if entry.name == plan.selection.reference)
    split, metric = rows["split"].iloc[0], rows["metric"].iloc[0]
    better = "" if rows["greater_is_better"].iloc[0] else "; less is better"
    told = [f"Score: {metric} on the {split} split, mean (and median) over seeds{better}."]
    if rows["seeds"].max() == 1:
        told.append("One seed has no interval.")
    elif rows["rows_resampled"].all():
        told.append("Its interval covers seeds and rows.")
    else:
        told.append("Its interval covers seeds alone: not all runs have kept predictions of the same rows.")
    if split == "validation":
        told.append("Settings and best states were chosen on the same rows, which flatters all scores.")
    return [
        *told,
        f"Difference: from {reference.title}, with the same seeds and rows.",
        _trials_told(plan),
        "Numbers: those beside the head. MB: the most memory of a run. kB: the adapter's files, the head included.",
    ]


def _trials_told(plan: Plan) -> str:
    sizes = sorted({entry.points for entry in plan.selection.entries if entry.points is not None})
    drawn = [str(size) for size in sizes if size > plan.trials]
    searched = f"{plan.trials} of {' or '.join(drawn)} settings, drawn with a fixed seed" if drawn else "all settings"
    if plan.trials == 1:
        own = "Settings are the recipe's"
        told = f"{own}; of a search, {searched}." if sizes else f"{own}."
    else:
        seeds = "one seed" if plan.trial_seeds == 1 else f"{plan.trial_seeds} seeds"
        of_search = f" (of a search, {searched})" if sizes else ""
        told = (
            f"Each method was tried with {plan.trials} settings{of_search} and {seeds} on validation data; the table "
            "has the best setting."
        )
    if plan.choice.settings:
        told += f" Set for all: {', '.join(f'{key} = {shown(value)}' for key, value in plan.choice.settings.items())}."
    return told


def _markdown(plan: Plan, methods: pd.DataFrame, figures: pd.DataFrame | None) -> str:
    lines = [f"# {plan.recipe.title}", ""]
    for task in plan.tasks:
        lines += [f"## {task}", "", *(f"- {each}" for each in sentences(plan, methods, task)), ""]
        lines += _table(HEADINGS, table_rows(methods, task))
        if figures is not None:
            lines += ["", *(f"- {each}" for each in figure_sentences(plan, figures, task)), ""]
            lines += _table(FIGURE_HEADINGS, figure_rows(figures, task))
        if (methods.loc[methods["task"] == task, "seeds"] > 0).any():
            lines += ["", f"![{task}](plots/scores-{task}.png)"]
        lines.append("")
    return "\n".join(lines)


def _table(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Return the lines of a Markdown table."""
    return [
        f"| {' | '.join(headings)} |",
        f"|{'---|' * len(headings)}",
        *(f"| {' | '.join(map(_escaped, cells))} |" for cells in rows),
    ]


def _escaped(text: str) -> str:
    """Return a text as a cell of a Markdown table."""
    return " ".join(text.replace("\\", "\\\\").replace("|", "\\|").split())
