"""Run `lowrank-ldu compare-methods`: the entries of a comparison, tuned alike."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from lowrank_ldu.cli.console import SafeConsole, say
from lowrank_ldu.cli.errors import readable_errors
from lowrank_ldu.cli.options import Data, Model, ReportTo, Settings, TaskNames, Variant, check_report, tell_unchecked

if TYPE_CHECKING:
    import pandas as pd

    from lowrank_ldu.finetuning import Recipe
    from lowrank_ldu.finetuning.comparison import Plan

_OUT = "lowrank-ldu-comparisons"


def compare_methods(
    recipe: Annotated[str, typer.Argument(help="Name of a shipped recipe, or a recipe's TOML file.")],
    *,
    methods: Annotated[
        list[str] | None,
        typer.Option(
            metavar="<str>",
            help="Methods, or entries of the comparison, with commas between them; repeat for more.",
            show_default="all entries of the comparison",
        ),
    ] = None,
    comparison: Annotated[
        str | None, typer.Option(help="Comparison of the recipe.", show_default="its first one")
    ] = None,
    reference: Annotated[
        str | None, typer.Option(help="Entry that the others are compared with.", show_default="the comparison's")
    ] = None,
    seeds: Annotated[int | None, typer.Option(help="Number of seeds.", show_default="the comparison's")] = None,
    trials: Annotated[
        int | None,
        typer.Option(help="Settings tried for each method.", show_default="all of --search, or the comparison's"),
    ] = None,
    trial_seeds: Annotated[
        int | None,
        typer.Option(help="Seeds that each setting is tried with.", show_default="the comparison's"),
    ] = None,
    search: Annotated[
        list[str] | None,
        typer.Option(
            metavar="KEY=[VALUES]",
            help="Values of a key that are tried, for all methods; repeat for more keys.",
            show_default="learning rates around the recipe's",
        ),
    ] = None,
    model: Model = None,
    data: Data = None,
    task: TaskNames = None,
    variant: Variant = None,
    set_: Settings = None,
    jobs: Annotated[int, typer.Option(min=1, help="Runs at a time, which share the cores.")] = 1,
    out: Annotated[
        Path | None, typer.Option(help="Folder for runs, tables and plots.", show_default=f"one in {_OUT}")
    ] = None,
    report_to: ReportTo = "none",
    finished: Annotated[
        bool, typer.Option("--finished", help="Train nothing; write the tables of what is finished.")
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Check options, targets and ranks, list the entries, and train none.")
    ] = False,
) -> None:
    """Compare methods of fine-tuning on a recipe's tasks.

    Every method gets the same number of trials on validation data. The best setting is trained with every seed, and
    judged on test rows, which no choice has seen, where the task has some. The same command again goes on where it was
    stopped.
    """
    check_report(report_to)
    with readable_errors():
        # PEFT asks transformers for it, and no user can change that.
        warnings.filterwarnings("ignore", "`is_gradient_checkpointing` is deprecated", FutureWarning)
        from lowrank_ldu.finetuning import comparison as comparing  # noqa: PLC0415
        from lowrank_ldu.finetuning.processes import is_first  # noqa: PLC0415
        from lowrank_ldu.finetuning.recipe import Choice, load_recipe, parse_setting  # noqa: PLC0415

        loaded = load_recipe(recipe)
        names = [name.strip() for each in methods or [] for name in each.split(",") if name.strip()]
        selection = comparing.select_entries(loaded, names, comparison=comparison, reference=reference)
        if search:
            selection = selection.searching(dict(parse_setting(each) for each in search))
        settings = dict(parse_setting(each) for each in set_ or [])
        chosen = Choice(variant=variant, model=model, data=data, settings=settings)
        folder = out or Path(_OUT) / _name(loaded, selection.name, variant)
        plan = comparing.plan_comparison(
            loaded, folder, selection, chosen, tasks=task or [], seeds=seeds, trials=trials, trial_seeds=trial_seeds
        )
        if dry_run:
            tell_unchecked((f"entry {entry.name}: ", config) for entry, config in plan.configs)
            _show_plan(plan)
            return
        tell = (lambda line: say(line, err=True)) if is_first() and not finished else None
        trained = comparing.compare_methods(plan, jobs=jobs, report_to=report_to, finished_only=finished, tell=tell)
        if is_first():
            methods_found = comparing.write_comparison(plan, trained)
            show_comparison(plan, methods_found)
            if plan.selection.metrics:
                _show_figures(plan, comparing.figures_frame(plan, trained, methods_found))
            say(f"written to {folder}")


def _name(recipe: Recipe, comparison: str | None, variant: str | None) -> str:
    return "-".join(name for name in (recipe.name, variant, comparison) if name)


def _show_plan(plan: Plan) -> None:
    from lowrank_ldu.finetuning.comparison.trials import setting_name  # noqa: PLC0415

    console = SafeConsole()
    for entry in plan.selection.entries:
        if entry.unavailable is not None:
            console.print(f"{entry.name}: {entry.title}, not available: {entry.unavailable}")
            continue
        console.print(f"{entry.name}: {entry.title}")
        for task in plan.tasks:
            tried = [setting_name(setting) for setting in plan.settings[task, entry.name]]
            console.print(f"  {task}: {'; '.join(tried)}")
    pairs = len(list(plan.pairs))
    # The first seeds of the chosen setting are among its trials.
    trials = plan.trials * plan.trial_seeds
    count = pairs * (trials + len(plan.seeds) - plan.trial_seeds)
    console.print(f"{count} runs: {trials} trials and {len(plan.seeds)} seeds of {pairs} pairs of task and entry")


# What fits a terminal; the rest is in table.md.
_COLUMNS = ("entry", "numbers", "score", "95 %", "differs", "95 %")


def show_comparison(plan: Plan, methods: pd.DataFrame) -> None:
    """Print the table of each task, and what it shows."""
    from lowrank_ldu.finetuning.comparison import sentences, table_rows  # noqa: PLC0415
    from lowrank_ldu.finetuning.comparison.report import state_of  # noqa: PLC0415

    console = SafeConsole()
    for task in plan.tasks:
        table, without = Table(title=task), []
        for place, heading in enumerate(_COLUMNS):
            table.add_column(heading, justify="right" if place else "left", no_wrap=True)
        rows = methods[methods["task"] == task].to_dict("records")
        for row, cells in zip(rows, table_rows(methods, task), strict=True):
            state = state_of(row)
            if state is not None:
                without.append(f"{row['entry']}: {state}")
                continue
            partly = "" if row["seeds"] == row["seeds_planned"] else f" {row['seeds']}/{row['seeds_planned']}"
            score = f"{cells[2].partition(' ')[0]}{partly}"
            table.add_row(row["entry"], cells[1], score, cells[3], cells[6], cells[7])
        if table.rows:
            console.print(table)
        for sentence in (*without, *sentences(plan, methods, task)):
            console.print(sentence)


# Of `FIGURE_HEADINGS`, what fits a terminal beside the entry's name.
_OF_FIGURES = {2: "mean", 3: "95 %", 6: "differs", 7: "95 %", 8: "paper"}


def _show_figures(plan: Plan, figures: pd.DataFrame) -> None:
    """Print a table of each further figure of each task, and what they show."""
    from lowrank_ldu.finetuning.comparison import figure_rows, figure_sentences  # noqa: PLC0415

    console = SafeConsole()
    names = {entry.title: entry.name for entry in plan.selection.entries}
    for task in plan.tasks:
        rows = figure_rows(figures, task)
        for figure in plan.selection.metrics:
            table = Table(title=f"{task}: {figure}")
            for place, heading in enumerate(("entry", *_OF_FIGURES.values())):
                table.add_column(heading, justify="right" if place else "left", no_wrap=True)
            for cells in rows:
                if cells[0] == figure:
                    table.add_row(names[cells[1]], *(cells[place] for place in _OF_FIGURES))
            console.print(table)
        for sentence in figure_sentences(plan, figures, task):
            console.print(sentence)
