"""List the runs of a recipe, and sum up what they come to."""

from __future__ import annotations

import statistics
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from lowrank_ldu.finetuning.checkpoints import step_of, whole_checkpoints
from lowrank_ldu.finetuning.configuration import RunConfig, configure
from lowrank_ldu.finetuning.run_directory import RunDirectory

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from lowrank_ldu.finetuning.recipe import Choice, Recipe


FINISHED = "finished"


@dataclass(frozen=True)
class Run:
    """Hold a run that is to be made, and where."""

    config: RunConfig
    folder: Path

    def state(self) -> str:
        """Say how far the run is: "new", "from step N" or "finished"."""
        directory = RunDirectory(self.folder)
        if directory.finished() is not None:
            return FINISHED
        whole = whole_checkpoints(directory.checkpoints)
        return f"from step {step_of(whole[-1])}" if whole else "new"


@dataclass(frozen=True)
class Result:
    """Hold what a finished run has come to.

    Attributes
    ----------
    folder : pathlib.Path
    task : str
    seed : int
    metric : str
        Name of the metric by which the best state was chosen.
    metrics : mapping
        Split to its metrics, of the best state.
    numbers : int
        Trained numbers of the method, without the head's.
    record : mapping
        All of `metrics.json`.
    """

    folder: Path
    task: str
    seed: int
    metric: str
    metrics: Mapping[str, Mapping[str, float]]
    numbers: int
    record: Mapping[str, Any] = field(repr=False, default_factory=dict)

    @property
    def reported(self) -> str:
        """Split on which the method is judged once its settings are chosen."""
        return str(self.record["reported"])

    @property
    def score(self) -> float:
        """The metric on the validation split."""
        return self.metrics["validation"][self.metric]


def plan_runs(
    recipe: Recipe, out: Path, choice: Choice, *, tasks: Sequence[str] = (), seeds: Sequence[int] = ()
) -> list[Run]:
    """List the runs of a recipe, each checked to its last option.

    Parameters
    ----------
    recipe : Recipe
    out : pathlib.Path
        Run with seed N of a task is in TASK/seed-N below it.
    choice : Choice
    tasks, seeds : sequence
        Instead of the recipe's own.

    Returns
    -------
    list of Run

    Raises
    ------
    OptionError
        An option is unknown or not accepted.
    RunDirectoryError
        A folder holds another run.
    """
    runs = []
    for task in dict.fromkeys(tasks or recipe.tasks):
        for seed in dict.fromkeys(seeds or recipe.seeds):
            run = Run(configure(recipe, task, choice, seed=seed), out / task / f"seed-{seed}")
            RunDirectory(run.folder).check(run.config.as_dict())
            runs.append(run)
    return runs


def median_scores(results: Sequence[Result]) -> dict[str, dict[str, dict[str, float]]]:
    """Return the median of each metric over the seeds of each task.

    Parameters
    ----------
    results : sequence of Result

    Returns
    -------
    dict
        Task to split to metric to its median.
    """
    tasks = {result.task: [each for each in results if each.task == result.task] for result in results}
    return {
        task: {
            split: {name: statistics.median(each.metrics[split][name] for each in own) for name in metrics}
            for split, metrics in own[0].metrics.items()
        }
        for task, own in tasks.items()
    }
