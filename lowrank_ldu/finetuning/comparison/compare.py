"""Tune every method with the same trials, then train it with all seeds."""

from __future__ import annotations

import math
import os
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from lowrank_ldu.errors import DivergenceError, OptionError
from lowrank_ldu.finetuning.comparison.trials import chosen_by, setting_name, trial_settings
from lowrank_ldu.finetuning.extra import require
from lowrank_ldu.finetuning.recipe import Choice, Recipe
from lowrank_ldu.finetuning.runner import train
from lowrank_ldu.finetuning.runs import Result, Run, plan_runs
from lowrank_ldu.validation import check_count

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

    from lowrank_ldu.finetuning.comparison.entries import Entry, Selection

_RUNS = "runs"
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


@dataclass(frozen=True)
class Plan:
    """Hold everything that a comparison is made of.

    Attributes
    ----------
    recipe : Recipe
    choice : Choice
    selection : Selection
    tasks : tuple of str
    seeds : tuple of int
    trials : int
    out : pathlib.Path
    """

    recipe: Recipe
    choice: Choice
    selection: Selection
    tasks: tuple[str, ...]
    seeds: tuple[int, ...]
    trials: int
    out: Path
    settings: dict[tuple[str, str], list[dict[str, Any]]] = field(repr=False, default_factory=dict)

    @property
    def pairs(self) -> Iterator[tuple[str, Entry]]:
        """Go through tasks and the entries that can be trained here."""
        for entry in self.selection.entries:
            if entry.unavailable is None:
                for task in self.tasks:
                    yield task, entry

    def run(self, task: str, entry: Entry, setting: dict[str, Any], seed: int) -> Run:
        """Return a run, its options checked and its folder."""
        chosen = chosen_by(entry, self.choice)
        choice = Choice(chosen.variant, chosen.method, chosen.model, chosen.data, {**chosen.settings, **setting})
        out = self.out / _RUNS / entry.name / setting_name(setting)
        return plan_runs(self.recipe, out, choice, tasks=[task], seeds=[seed])[0]


def plan_comparison(
    recipe: Recipe,
    out: Path,
    selection: Selection,
    choice: Choice | None = None,
    *,
    tasks: Sequence[str] = (),
    seeds: int | None = None,
    trials: int | None = None,
) -> Plan:
    """Check everything that a comparison will need, and train nothing.

    Parameters
    ----------
    recipe : Recipe
    out : pathlib.Path
    selection : Selection
        Of `select_entries`.
    choice : Choice, optional
        Model, data, variant and settings for all entries.
    tasks : sequence of str
        All of the recipe's, if not given.
    seeds : int, optional
        Their number: the recipe's first ones, and others after them. As the comparison in the recipe says, if not
        given.
    trials : int, optional
        Likewise.

    Returns
    -------
    Plan

    Raises
    ------
    OptionError
        An option is unknown or not accepted.
    RunDirectoryError
        A folder holds another run.
    """
    choice = Choice() if choice is None else choice
    if choice.method is not None:
        raise OptionError(f"method is {choice.method!r}; accepted: none, the entries have methods")
    trials = selection.trials if trials is None else trials
    count = selection.seeds or len(recipe.seeds) if seeds is None else seeds
    for name, value in (("trials", trials), ("seeds", count)):
        try:
            check_count(value, name, least=1)
        except (TypeError, ValueError) as error:
            raise OptionError(str(error)) from error
    more = range(max(recipe.seeds) + 1, max(recipe.seeds) + 1 + count)
    plan = Plan(
        recipe=recipe,
        choice=choice,
        selection=selection,
        tasks=tuple(dict.fromkeys(tasks or recipe.tasks)),
        seeds=(*recipe.seeds, *more)[:count],
        trials=trials,
        out=out,
    )
    for task, entry in plan.pairs:
        settings = trial_settings(recipe, task, entry, choice, trials)
        plan.settings[task, entry.name] = settings
        for setting in settings:
            plan.run(task, entry, setting, plan.seeds[0])
    return plan


def compare_methods(
    plan: Plan, *, jobs: int = 1, report_to: str = "none", tell: Callable[[str], None] | None = None
) -> list[Trained]:
    """Train every run of a comparison that is not finished.

    Each entry is tried with each of its settings and the first seed. The setting that did best on validation data is
    trained with all seeds; then the rows that are evaluated once are. The same call goes on where an earlier one was
    stopped.

    Parameters
    ----------
    plan : Plan
        Of `plan_comparison`.
    jobs : int
        Runs that are trained at a time, each in a process of its own where there are more than one.
    report_to : str
        As for `run_recipe`.
    tell : callable, optional
        Gets a line on each run.

    Returns
    -------
    list of Trained
        Trials first.

    Raises
    ------
    lowrank_ldu.errors.UserError
        What is given cannot be used, or training cannot go on. A loss that is no number fails its run alone.
    """
    first = plan.seeds[0]
    trials = [
        (task, entry, setting, first) for task, entry in plan.pairs for setting in plan.settings[task, entry.name]
    ]
    # The first setting of every entry, then the second one: what is stopped early holds something of each.
    trials.sort(key=lambda each: plan.settings[each[0], each[1].name].index(each[2]))
    tried = _train_all(plan, trials, tests=False, jobs=jobs, report_to=report_to, tell=tell)
    chosen = {(task, entry.name): _best(plan, task, entry, tried) for task, entry in plan.pairs}
    finals = [
        (task, entry, setting, seed)
        for seed in plan.seeds
        for task, entry in plan.pairs
        if (setting := chosen[task, entry.name]) is not None
    ]
    final = _train_all(plan, finals, tests=True, jobs=jobs, report_to=report_to, tell=tell)
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
        for (task, entry, setting, seed), outcome in zip(listed, outcomes.values(), strict=True)
    ]


def _best(plan: Plan, task: str, entry: Entry, tried: dict[Any, Result | str]) -> dict[str, Any] | None:
    """Return the setting that did best on validation data; None where all failed."""
    best, most = None, -math.inf
    for setting in plan.settings[task, entry.name]:
        outcome = tried[task, entry.name, setting_name(setting), plan.seeds[0]]
        if isinstance(outcome, Result):
            score = outcome.score if outcome.record["greater_is_better"] else -outcome.score
            if score > most:
                best, most = setting, score
    return best


def _train_all(
    plan: Plan,
    listed: Sequence[tuple[str, Entry, dict[str, Any], int]],
    *,
    tests: bool,
    jobs: int,
    report_to: str,
    tell: Callable[[str], None] | None,
) -> dict[Any, Result | str]:
    """Return the outcome of each run, in the order of the list."""
    joblib = require("joblib")
    runs = [plan.run(*each) for each in listed]
    calls = (joblib.delayed(_train_one)(run, plan.out / _HEADS, tests, report_to, _threads(jobs)) for run in runs)
    outcomes: dict[Any, Result | str] = {}
    for number, outcome in enumerate(joblib.Parallel(n_jobs=jobs, return_as="generator")(calls), start=1):
        task, entry, setting, seed = listed[number - 1]
        outcomes[task, entry.name, setting_name(setting), seed] = outcome
        if tell is not None:
            tell(f"{number} of {len(runs)}: {_told(task, entry, setting_name(setting), seed, outcome)}")
    return outcomes


def _told(task: str, entry: Entry, setting: str, seed: int, outcome: Result | str) -> str:
    where = f"{task}, {entry.name}, {setting}, seed {seed}"
    if isinstance(outcome, str):
        return f"{where}: failed, {outcome}"
    return f"{where}: validation {outcome.metric} {outcome.score:.4g}"


def _threads(jobs: int) -> int | None:
    return None if jobs == 1 else max(1, (os.cpu_count() or 1) // jobs)


def _train_one(
    run: Run, heads: Path, tests: bool, report_to: str, threads: int | None
) -> Result | str:  # called by joblib
    """Train a run; a loss that is no number is an outcome, too."""
    import torch  # noqa: PLC0415  # a process of its own begins here

    if threads is not None:
        torch.set_num_threads(threads)
    try:
        return train(run, report_to=report_to, tests=tests, heads=heads)
    except DivergenceError as error:
        return str(error)
