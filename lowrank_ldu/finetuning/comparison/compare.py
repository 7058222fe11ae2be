"""Tune every method with the same trials, then train it with all seeds."""

from __future__ import annotations

import math
import os
import threading
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from lowrank_ldu.errors import DivergenceError, OptionError
from lowrank_ldu.files import replace_file
from lowrank_ldu.finetuning.comparison.trials import chosen_by, setting_name, trial_settings
from lowrank_ldu.finetuning.extra import require
from lowrank_ldu.finetuning.processes import is_first
from lowrank_ldu.finetuning.recipe import Choice, Recipe
from lowrank_ldu.finetuning.run_directory import NOT_EVALUATED, RunDirectory
from lowrank_ldu.finetuning.runner import train
from lowrank_ldu.finetuning.runs import Result, Run, plan_runs
from lowrank_ldu.validation import check_count

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

    from lowrank_ldu.finetuning.comparison.entries import Entry, Selection

FAILURE, FAILURE_OF_TESTS = "failure.txt", "failure-of-tests.txt"
# Of a folder's name, in bytes.
_LONGEST = 200
# What a search is for: titles name other settings.
_RATES = {"learning_rate", "head_learning_rate"}
_WATCH = "parent of a comparison"
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
    if out.exists() and not out.is_dir():
        raise OptionError(f"out is {str(out)!r}, which is no folder; accepted: a new one, or a comparison's")
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
    for entry in selection.entries:
        _check_own(entry, choice, selection, trials)
    for task, entry in plan.pairs:
        settings = trial_settings(recipe, task, entry, choice, trials)
        plan.settings[task, entry.name] = settings
        for setting in settings:
            if len(setting_name(setting).encode()) > _LONGEST:
                raise OptionError(f"setting {setting_name(setting)[:40]}... is too long; accepted: {_LONGEST} bytes")
            plan.run(task, entry, setting, plan.seeds[0])
    return plan


def _check_own(entry: Entry, choice: Choice, selection: Selection, trials: int) -> None:
    """Refuse what would make an entry another one than its title says."""
    for key in sorted(entry.own & choice.settings.keys()):
        raise OptionError(
            f"{key} is set for all entries, and {entry.name} has its own; accepted: to leave it out, or methods by name"
        )
    for key in sorted(entry.own & entry.search.keys() - _RATES):
        raise OptionError(f"search has {key}, and {entry.name} has its own; accepted: another key, or methods by name")
    swept = selection.sweep in entry.search or (selection.sweep in _RATES and not entry.search and trials > 1)
    if selection.sweep is not None and swept:
        raise OptionError(
            f"trials is {trials}, and the comparison sweeps {selection.sweep}; accepted: 1, or a search of other keys"
        )


def compare_methods(
    plan: Plan,
    *,
    jobs: int = 1,
    report_to: str = "none",
    finished_only: bool = False,
    tell: Callable[[str], None] | None = None,
) -> list[Trained]:
    """Train every run of a comparison that is not finished.

    Each entry is tried with each of its settings and the first seed. The setting that did best on validation data is
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
    first = plan.seeds[0]
    trials = [
        (task, entry, setting, first) for task, entry in plan.pairs for setting in plan.settings[task, entry.name]
    ]
    # The first setting of every entry, then the second one: what is stopped early holds something of each.
    trials.sort(key=lambda each: plan.settings[each[0], each[1].name].index(each[2]))
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
    """Return the setting that did best on validation data.

    None where all failed, or where one was not tried yet.
    """
    best, most = None, -math.inf
    for setting in plan.settings[task, entry.name]:
        outcome = tried.get((task, entry.name, setting_name(setting), plan.seeds[0]))
        if outcome is None:
            return None
        if isinstance(outcome, Result):
            score = outcome.score if outcome.record["greater_is_better"] else -outcome.score
            if score > most:
                best, most = setting, score
    return best


def _train_all(
    plan: Plan, listed: Sequence[tuple[str, Entry, dict[str, Any], int]], options: _Options, *, tests: bool
) -> dict[Any, Result | str]:
    """Return the outcome of each run that has one."""
    joblib = require("joblib")
    planned = ((each, plan.run(*each)) for each in listed)
    todo = [(each, run) for each, run in planned if not options.finished_only or _is_there(run, tests=tests)]
    calls = (
        joblib.delayed(_train_one)(run, plan.out / _HEADS, tests, options.report_to, _threads(options.jobs))
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


def _is_there(run: Run, *, tests: bool) -> bool:
    record = RunDirectory(run.folder).finished()
    if record is None:
        return (run.folder / FAILURE).is_file()
    return not (tests and record[NOT_EVALUATED]) or (run.folder / FAILURE_OF_TESTS).is_file()


def _told(task: str, entry: Entry, setting: str, seed: int, outcome: Result | str) -> str:
    where = f"{task}, {entry.name}, {setting}, seed {seed}"
    if isinstance(outcome, str):
        return f"{where}: failed, {outcome}"
    return f"{where}: validation {outcome.metric} {outcome.score:.4g}"


def _threads(jobs: int) -> int | None:
    return None if jobs == 1 else max(1, (os.cpu_count() or 1) // jobs)


def _train_one(  # joblib calls it
    run: Run, heads: Path, tests: bool, report_to: str, threads: int | None
) -> Result | str:
    """Train a run; a loss that is no number is an outcome, too."""
    import torch  # noqa: PLC0415  # a process of its own begins here

    if threads is not None:
        torch.set_num_threads(threads)
        _end_with_parent()
    directory = RunDirectory(run.folder)
    # That of the tests has no part in the choice of a setting.
    kept = FAILURE if directory.finished() is None else FAILURE_OF_TESTS
    if (tests or kept == FAILURE) and (run.folder / kept).is_file():
        return (run.folder / kept).read_text(encoding="utf-8")
    try:
        result = train(run, report_to=report_to, tests=tests, heads=heads)
    except DivergenceError as error:
        with directory.written():
            replace_file(run.folder / kept, str(error).encode())
        outcome: Result | str = str(error)
    else:
        outcome = result if math.isfinite(result.score) else f"the validation {result.metric} is {result.score}"
    # Those of all weights, with two moments each, would fill the disk; the adapter stays.
    if is_first():
        directory.remove_checkpoints(failed=isinstance(outcome, str))
    return outcome


def _end_with_parent() -> None:
    """End this process when the one that began it is gone.

    It would train on, and keep folders locked from the command that resumes.
    """
    parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            threading.Event().wait(1.0)
        os._exit(1)

    if not any(thread.name == _WATCH for thread in threading.enumerate()):
        threading.Thread(target=watch, name=_WATCH, daemon=True).start()
