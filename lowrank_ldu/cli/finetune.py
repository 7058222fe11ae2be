"""Run `lowrank-ldu finetune`: a recipe's tasks, each with each seed."""

from __future__ import annotations

import json
import statistics
import sys
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from lowrank_ldu.cli.console import SafeConsole, say
from lowrank_ldu.cli.errors import fail, readable_errors
from lowrank_ldu.cli.options import Data, Model, ReportTo, Settings, TaskNames, Variant, check_report, tell_unchecked

if TYPE_CHECKING:
    from collections.abc import Sequence

    from lowrank_ldu.finetuning import Choice, Recipe, Result, Run

_RUNS = "lowrank-ldu-runs"


def finetune(
    recipe: Annotated[
        str | None, typer.Argument(help="Name of a shipped recipe, or a recipe's TOML file.", show_default=False)
    ] = None,
    *,
    model: Model = None,
    data: Data = None,
    task: TaskNames = None,
    variant: Variant = None,
    method: Annotated[str | None, typer.Option(help="Method of fine-tuning.", show_default="the recipe's")] = None,
    set_: Settings = None,
    seed: Annotated[
        list[int] | None,
        typer.Option(metavar="<int>", help="Seed of a run; repeat for more.", show_default="the recipe's"),
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Folder for the runs.", show_default=f"one in {_RUNS}")] = None,
    report_to: ReportTo = "none",
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Check options, targets and ranks, list the runs, and train none.")
    ] = False,
    list_: Annotated[bool, typer.Option("--list", help="List recipes and methods, and exit.")] = False,
    show: Annotated[bool, typer.Option("--show", help="Print the recipe's file, and exit.")] = False,
) -> None:
    """Fine-tune a model by a recipe.

    Each task is trained with each seed, in TASK/seed-N of the folder. The same command again goes on where it was
    stopped, with the same numbers as if it had not been, and leaves alone what is finished.
    """
    if list_:
        with readable_errors():
            _list()
        return
    if recipe is None:
        fail("no recipe is given; accepted: a name of lowrank-ldu finetune --list, or a .toml file")
    check_report(report_to)
    with readable_errors():
        # PEFT asks transformers for it, and no user can change that.
        warnings.filterwarnings("ignore", "`is_gradient_checkpointing` is deprecated", FutureWarning)
        from lowrank_ldu.finetuning.recipe import Choice, load_recipe, parse_setting  # noqa: PLC0415

        loaded = load_recipe(recipe)
        if show:
            sys.stdout.write(loaded.text)
            return
        settings = dict(parse_setting(each) for each in set_ or [])
        chosen = Choice(variant=variant, method=method, model=model, data=data, settings=settings)
        _run(loaded, chosen, out, tasks=task or [], seeds=seed or [], report_to=report_to, dry_run=dry_run)


def _run(
    recipe: Recipe,
    chosen: Choice,
    out: Path | None,
    *,
    tasks: Sequence[str],
    seeds: Sequence[int],
    report_to: str,
    dry_run: bool,
) -> None:
    from lowrank_ldu.finetuning import plan_runs, run_recipe  # noqa: PLC0415
    from lowrank_ldu.finetuning.processes import is_first  # noqa: PLC0415
    from lowrank_ldu.finetuning.recipe import resolve  # noqa: PLC0415

    resolved = resolve(recipe, (tasks or recipe.tasks)[0], chosen)
    names = [recipe.name, *([resolved.variant] if resolved.variant else []), resolved.method]
    folder = out or Path(_RUNS) / "-".join(names)
    if dry_run:
        runs = plan_runs(recipe, folder, chosen, tasks=tasks, seeds=seeds)
        tell_unchecked(("", run.config) for run in runs)
        _show_plan(runs)
        return
    # Of several processes the first one speaks.
    tell = (lambda line: say(line, err=True)) if is_first() and not sys.stderr.isatty() else None
    results = run_recipe(recipe, folder, chosen, tasks=tasks, seeds=seeds, report_to=report_to, tell=tell)
    if is_first():
        _write_summary(results, folder)
        _show_results(results)
        say(f"written to {folder}")


def _list() -> None:
    from lowrank_ldu.finetuning import list_recipes, load_recipe  # noqa: PLC0415
    from lowrank_ldu.finetuning.methods import METHODS  # noqa: PLC0415

    console = SafeConsole()
    for name in list_recipes():
        recipe = load_recipe(name)
        console.print(f"{name}: {recipe.title}")
        console.print(f"  tasks: {', '.join(recipe.tasks)}")
        for variant, about in recipe.variants.items():
            console.print(f"  variant {variant}: {about}")
        for comparison, about in recipe.comparisons.items():
            console.print(f"  comparison {comparison}: {about}")
    console.print("methods:")
    for name, method in METHODS.items():
        reason = method.unavailable()
        console.print(f"  {name}: {method.title}{'' if reason is None else f', not available: {reason}'}")


def _show_plan(runs: Sequence[Run]) -> None:
    """Print the runs, and the configuration of each task."""
    from lowrank_ldu.finetuning.configuration import flat  # noqa: PLC0415

    console, shown = SafeConsole(), set()
    for run in runs:
        config = run.config
        if config.task not in shown:
            shown.add(config.task)
            console.print(f"{config.task}:")
            for name, value in flat(config.as_dict()):
                if name not in {"task", "seed"}:
                    console.print(f"  {name} = {json.dumps(value)}")
        console.print(f"  seed {config.seed}, {run.state()}: {run.folder}")


def _write_summary(results: Sequence[Result], folder: Path) -> None:
    from lowrank_ldu.files import replace_file  # noqa: PLC0415
    from lowrank_ldu.finetuning import median_scores  # noqa: PLC0415

    runs = [{"task": each.task, "seed": each.seed, "folder": str(each.folder), **each.record} for each in results]
    summary = {"medians": median_scores(results), "runs": runs}
    replace_file(folder / "summary.json", f"{json.dumps(summary, indent=2)}\n".encode())


def _show_results(results: Sequence[Result]) -> None:
    from lowrank_ldu.finetuning import median_scores  # noqa: PLC0415
    from lowrank_ldu.formatting import duration  # noqa: PLC0415

    table = Table()
    for place, heading in enumerate(("task", "metric", "median", "range", "seeds", "numbers", "time a run")):
        table.add_column(heading, justify="right" if place > 1 else "left", no_wrap=place > 1)
    for task, splits in median_scores(results).items():
        own = [each for each in results if each.task == task]
        time = duration(round(statistics.median(each.record["seconds"] for each in own)))
        for split, metrics in splits.items():
            for name, median in metrics.items():
                if name != "loss" or own[0].metric == "loss":
                    values = [each.metrics[split][name] for each in own]
                    row = (f"{median:.4f}", f"{min(values):.4f} - {max(values):.4f}", str(len(own)))
                    table.add_row(task, f"{split} {name}", *row, f"{own[0].numbers:,}", time)
    SafeConsole().print(table)
