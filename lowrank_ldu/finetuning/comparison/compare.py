"""Tune every method with the same trials, then train it with all seeds."""

from __future__ import annotations

import math
import os
import statistics
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from lowrank_ldu.finetuning.comparison.trials import setting_name
from lowrank_ldu.finetuning.comparison.worker import is_there, train_one
from lowrank_ldu.finetuning.extra import require
from lowrank_ldu.finetuning.model_check import check_models
from lowrank_ldu.finetuning.runs import Result

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from lowrank_ldu.finetuning.comparison.entries import Entry
    from lowrank_ldu.finetuning.comparison.plan import Plan

_HEADS = "heads"


@dataclass(frozen=True)
class Trained:
    """Hold a run of a comparison, and what it has come to.

    Attributes
    ----------
    entry : Entry
    setting : str
        What was tried, "learning_rate=0.001".
    task : str
    seed : int
    trial : bool
        Whether it is one of those that the setting was chosen by. The chosen one's is of both kinds.
    chosen : bool
        Whether the setting is the chosen one.
    result : Result or None
        None where the loss was no number.
    failure : str or None
        What was said then.
    """

    entry: Entry
    setting: str
    task: str
    seed: int
    trial: bool
    chosen: bool
    result: Result | None
    failure: str | None = None


def compare_methods(
    plan: Plan,
    *,
    jobs: int = 1,
    report_to: str = "none",
    finished_only: bool = False,
    tell: Callable[[str], None] | None = None,
) -> list[Trained]:
    """Train every run of a comparison that is not finished.

    Each entry is tried with each of its settings and the first seeds. The setting that did best on validation data is
    trained with all seeds; then the rows that are evaluated once are. The same call goes on where an earlier one was
    stopped. A finished run keeps its adapter and no checkpoints.

    Parameters
    ----------
    plan : Plan
        Of `plan_comparison`.
    jobs : int
        Runs that are trained at a time, each in a process of its own where there are more than one.
    report_to : str
        As for `run_recipe`.
    finished_only : bool
        Whether nothing is trained, and what is finished is read.
    tell : callable, optional
        Gets a line on each run.

    Returns
    -------
    list of Trained
        Trials first.

    Raises
    ------
    lowrank_ldu.errors.UserError
        What is given cannot be used, or training cannot go on. A loss that is no number fails its run alone, and
        leaves failure.txt in its folder; the run is not trained again while that is there.
    """
    trials = [
        (task, entry, setting, seed)
        for seed in plan.seeds[: plan.trial_seeds]
        for task, entry in plan.pairs
        for setting in plan.settings[task, entry.name]
    ]
    # The first setting of every entry, then the second one: what is stopped early holds something of each.
    trials.sort(key=lambda each: plan.settings[each[0], each[1].name].index(each[2]))
    if not finished_only:
        todo = ((each[1].name, plan.run(*each)) for each in trials)
        left = ((f"entry {name}: ", run.config) for name, run in todo if not is_there(run, tests=False))
        check_models(left, download=True)
    options = _Options(jobs, report_to, finished_only, tell)
    tried = _train_all(plan, trials, options, tests=False)
    chosen = {(task, entry.name): _best(plan, task, entry, tried) for task, entry in plan.pairs}
    finals = [
        (task, entry, setting, seed)
        for seed in plan.seeds
        for task, entry in plan.pairs
        if (setting := chosen[task, entry.name]) is not None
    ]
    final = _train_all(plan, finals, options, tests=True)
    return [
        Trained(
            entry,
            setting_name(setting),
            task,
            seed,
            trial=of_trials,
            chosen=setting == chosen[task, entry.name],
            result=outcome if isinstance(outcome, Result) else None,
            failure=outcome if isinstance(outcome, str) else None,
        )
        for of_trials, listed, outcomes in ((True, trials, tried), (False, finals, final))
        for (task, entry, setting, seed) in listed
        if (outcome := outcomes.get((task, entry.name, setting_name(setting), seed))) is not None
    ]


@dataclass(frozen=True)
class _Options:
    jobs: int
    report_to: str
    finished_only: bool
    tell: Callable[[str], None] | None


def _best(plan: Plan, task: str, entry: Entry, tried: dict[Any, Result | str]) -> dict[str, Any] | None:
    """Return the setting whose mean on validation data is best.

    None where each failed with some seed, or where one was not tried yet. A single setting may fail with some.
    """
    best, most = None, -math.inf
    settings = plan.settings[task, entry.name]
    for setting in settings:
        runs = (task, entry.name, setting_name(setting))
        outcomes = [tried.get((*runs, seed)) for seed in plan.seeds[: plan.trial_seeds]]
        if any(outcome is None for outcome in outcomes):
            return None
        results = [outcome for outcome in outcomes if isinstance(outcome, Result)]
        if results and len(settings) == 1:
            return setting
        if len(results) == len(outcomes):
            mean = statistics.fmean(result.score for result in results)
            score = mean if results[0].record["greater_is_better"] else -mean
            if score > most:
                best, most = setting, score
    return best


def _train_all(
    plan: Plan, listed: Sequence[tuple[str, Entry, dict[str, Any], int]], options: _Options, *, tests: bool
) -> dict[Any, Result | str]:
    """Return the outcome of each run that has one."""
    joblib = require("joblib")
    planned = ((each, plan.run(*each)) for each in listed)
    todo = [(each, run) for each, run in planned if not options.finished_only or is_there(run, tests=tests)]
    calls = (
        joblib.delayed(train_one)(run, plan.out / _HEADS, tests, options.report_to, _threads(options.jobs))
        for _, run in todo
    )
    outcomes: dict[Any, Result | str] = {}
    # No more than what is trained: if this process is killed, none begins another run.
    parallel = joblib.Parallel(n_jobs=options.jobs, return_as="generator", pre_dispatch="n_jobs")
    for number, (((task, entry, setting, seed), _), outcome) in enumerate(zip(todo, parallel(calls), strict=True), 1):
        outcomes[task, entry.name, setting_name(setting), seed] = outcome
        if options.tell is not None:
            told = _told(task, entry, setting_name(setting), seed, outcome)
            options.tell(f"{'seeds' if tests else 'trials'}, {number} of {len(todo)}: {told}")
    return outcomes


def _told(task: str, entry: Entry, setting: str, seed: int, outcome: Result | str) -> str:
    where = f"{task}, {entry.name}, {setting}, seed {seed}"
    if isinstance(outcome, str):
        return f"{where}: failed, {outcome}"
    return f"{where}: validation {outcome.metric} {outcome.score:.4g}"


def _threads(jobs: int) -> int | None:
    return None if jobs == 1 else max(1, (os.cpu_count() or 1) // jobs)
