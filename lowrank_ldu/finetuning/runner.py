"""Train the runs of a recipe, or go on with them."""

from __future__ import annotations

import contextlib
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from lowrank_ldu.errors import OptionError
from lowrank_ldu.finetuning.extra import require
from lowrank_ldu.finetuning.model_check import check_models
from lowrank_ldu.finetuning.processes import is_first
from lowrank_ldu.finetuning.recipe import Choice
from lowrank_ldu.finetuning.run_directory import NOT_EVALUATED, RunDirectory
from lowrank_ldu.finetuning.runs import FINISHED, Result, Run, plan_runs
from lowrank_ldu.finetuning.training import Training

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    from lowrank_ldu.finetuning.recipe import Recipe

REPORTS = ("none", "tensorboard", "wandb", "trackio")


def run_recipe(
    recipe: Recipe,
    out: Path,
    choice: Choice | None = None,
    *,
    tasks: Sequence[str] = (),
    seeds: Sequence[int] = (),
    report_to: str = "none",
    tests: bool = True,
    tell: Callable[[str], None] | None = None,
) -> list[Result]:
    """Train every run of a recipe that is not finished.

    Parameters
    ----------
    recipe : Recipe
    out : pathlib.Path
    choice : Choice, optional
    tasks, seeds : sequence
        Instead of the recipe's own.
    report_to : str
        "none", "tensorboard", "wandb" or "trackio".
    tests : bool
        Whether what is evaluated once, when training is over, is. A later call adds it to a run without.
    tell : callable, optional
        Gets a line when a run begins, and on each evaluation.

    Returns
    -------
    list of Result

    Raises
    ------
    lowrank_ldu.errors.UserError
        What is given cannot be used, or training cannot go on.
    """
    runs = plan_runs(recipe, out, choice or Choice(), tasks=tasks, seeds=seeds)
    check_models((("", run.config) for run in runs if run.state() != FINISHED), download=True)
    return [train(run, report_to=report_to, tests=tests, tell=tell) for run in runs]


def train(
    run: Run,
    *,
    report_to: str = "none",
    tests: bool = True,
    heads: Path | None = None,
    tell: Callable[[str], None] | None = None,
) -> Result:
    """Train one run, or go on with it, or read what it came to.

    Parameters
    ----------
    run : Run
    report_to : str
    tests : bool
        As for `run_recipe`.
    heads : pathlib.Path, optional
        Folder of heads that were trained alone, for runs that begin with the same one.
    tell : callable, optional
        As for `run_recipe`.

    Returns
    -------
    Result
    """
    if report_to not in REPORTS:
        raise OptionError(f"report_to is {report_to!r}; accepted: {', '.join(REPORTS)}")
    if report_to != "none" and find_spec(report_to) is None:
        raise OptionError(f"report_to is {report_to!r}, which is not installed; accepted: pip install {report_to}")
    for module in ("transformers", "accelerate", "datasets"):
        require(module)
    directory = RunDirectory(run.folder)
    config = run.config.as_dict()
    directory.check(config)
    record = directory.finished()
    if record is not None and not (tests and record[NOT_EVALUATED]):
        return _result(run, record)
    # Of several processes the first one keeps the folder.
    with directory.locked() if is_first() else contextlib.nullcontext():
        directory.check(config)
        record = directory.finished()
        if record is None or (tests and record[NOT_EVALUATED]):
            if tell is not None:
                tell(f"{run.config.task}, seed {run.config.seed}, {run.state()}: {run.folder}")
            with directory.written():
                record = Training(run.config, directory, report_to, tell, heads).record(tests=tests)
    return _result(run, record)


def _result(run: Run, record: Mapping[str, Any]) -> Result:
    return Result(
        folder=run.folder,
        task=run.config.task,
        seed=run.config.seed,
        metric=record["metric"],
        metrics=record["metrics"],
        numbers=record["numbers"],
        record=record,
    )
