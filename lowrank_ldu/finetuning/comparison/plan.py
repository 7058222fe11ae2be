"""Check what a comparison is made of, before anything is trained."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from lowrank_ldu.errors import OptionError
from lowrank_ldu.finetuning.comparison.trials import chosen_by, setting_name, trial_settings
from lowrank_ldu.finetuning.recipe import Choice, Recipe, check_seed, layered
from lowrank_ldu.finetuning.runs import Run, plan_runs
from lowrank_ldu.validation import check_count

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from lowrank_ldu.finetuning.comparison.entries import Entry, Selection
    from lowrank_ldu.finetuning.configuration import RunConfig

# Of a folder's name, in bytes.
_LONGEST = 200
# What a search is for: titles name other settings.
_RATES = {"learning_rate", "head_learning_rate"}
_RUNS = "runs"


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
    trial_seeds : int
    out : pathlib.Path
    """

    recipe: Recipe
    choice: Choice
    selection: Selection
    tasks: tuple[str, ...]
    seeds: tuple[int, ...]
    trials: int
    trial_seeds: int
    out: Path
    settings: dict[tuple[str, str], list[dict[str, Any]]] = field(repr=False, default_factory=dict)

    @property
    def pairs(self) -> Iterator[tuple[str, Entry]]:
        """Go through tasks and the entries that can be trained here."""
        for entry in self.selection.entries:
            if entry.unavailable is None:
                for task in self.tasks:
                    yield task, entry

    @property
    def configs(self) -> Iterator[tuple[Entry, RunConfig]]:
        """Go through what the trials of the first seed are told."""
        for task, entry in self.pairs:
            for setting in self.settings[task, entry.name]:
                yield entry, self.run(task, entry, setting, self.seeds[0]).config

    def run(self, task: str, entry: Entry, setting: dict[str, Any], seed: int) -> Run:
        """Return a run, its options checked and its folder."""
        chosen = chosen_by(entry, self.choice)
        choice = replace(chosen, settings=layered(chosen.settings, setting))
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
    trial_seeds: int | None = None,
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
        Likewise; without a number there, all settings of the searches, or one where there is no search.
    trial_seeds : int, optional
        How many of the seeds each trial has, likewise. The setting with the best mean is chosen.

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
    trials = _trials(selection) if trials is None else trials
    count = selection.seeds or len(recipe.seeds) if seeds is None else seeds
    trial_seeds = selection.trial_seeds if trial_seeds is None else trial_seeds
    for name, value in (("trials", trials), ("seeds", count), ("trial_seeds", trial_seeds)):
        try:
            check_count(value, name, least=1)
        except (TypeError, ValueError) as error:
            raise OptionError(str(error)) from error
    if trial_seeds > count:
        raise OptionError(f"trial_seeds is {trial_seeds}; accepted: 1 to {count}, the number of seeds")
    plan = Plan(
        recipe=recipe,
        choice=choice,
        selection=selection,
        tasks=tuple(dict.fromkeys(tasks or recipe.tasks)),
        seeds=_seeds(recipe, count),
        trials=trials,
        trial_seeds=trial_seeds,
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


def _seeds(recipe: Recipe, count: int) -> tuple[int, ...]:
    """Return the recipe's first seeds, and others after them."""
    after = max(recipe.seeds) + 1
    seeds = (*recipe.seeds, *range(after, after + count))[:count]
    check_seed(max(seeds))
    return seeds


def _trials(selection: Selection) -> int:
    """Return the number of trials where a user gives none."""
    if selection.trials is not None:
        return selection.trials
    sizes = {entry.points: entry.name for entry in selection.entries if entry.points is not None}
    if len(sizes) > 1:
        listed = ", ".join(f"{size} of {name}" for size, name in sorted(sizes.items()))
        raise OptionError(
            f"trials is not given, and searches have different numbers of settings ({listed}); accepted: 1 to "
            f"{min(sizes)}"
        )
    return next(iter(sizes), 1)


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
