"""Put the runs of a comparison into pandas frames."""

from __future__ import annotations

import math
import statistics
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pandas as pd

from lowrank_ldu.finetuning.comparison.intervals import interval, resampled_scores
from lowrank_ldu.finetuning.run_directory import RunDirectory
from lowrank_ldu.finetuning.tasks.metrics import metric_function

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

    from lowrank_ldu.finetuning.comparison.compare import Trained
    from lowrank_ldu.finetuning.comparison.entries import Entry
    from lowrank_ldu.finetuning.comparison.plan import Plan
    from lowrank_ldu.finetuning.runs import Result

_SIZES = ("numbers", "numbers_trained_whole", "adapter_bytes", "shared_bytes", "peak_memory_bytes", "seconds")
_SHARES = ("accuracy", "f1", "acc", "acc_norm", "em", "exact_match")  # some of them lm-eval's
_CORRELATIONS = ("matthews_correlation", "pearson", "spearman")
# Of metrics that have any; Student's interval of few seeds may go beyond.
BOUNDS = {**dict.fromkeys(_SHARES, (0.0, 1.0)), **dict.fromkeys(_CORRELATIONS, (-1.0, 1.0))}
_OF_A_RUN = ("seconds", "peak_memory_bytes")
RUN_COLUMNS = (
    "task", "entry", "title", "method", "family", "setting", "seed", "trial", "chosen", "split", "metric", "value",
    "reported",
    *_SIZES, "best_step", "steps", "failure",
)  # fmt: skip


def runs_frame(trained: Sequence[Trained]) -> pd.DataFrame:
    """Return a row for each metric of each run.

    Parameters
    ----------
    trained : sequence of Trained

    Returns
    -------
    pandas.DataFrame
        Columns `RUN_COLUMNS`. "reported" marks the metric that a method is judged by once its setting is chosen. A run
        without a result has one row, with the failure.
    """
    rows: list[dict[str, Any]] = []
    for each in trained:
        base = {
            "task": each.task,
            "entry": each.entry.name,
            "title": each.entry.title,
            "method": each.entry.method,
            "family": each.entry.family,
            "setting": each.setting,
            "seed": each.seed,
            "trial": each.trial,
            "chosen": each.chosen,
            "failure": each.failure,
        }
        if each.result is None:
            rows.append(base)
            continue
        record = each.result.record
        base |= {name: record[name] for name in (*_SIZES, "best_step", "steps")}
        # What a method is judged by comes with its seeds.
        reported = None if each.trial else (each.result.reported, each.result.metric)
        rows += [
            base | {"split": split, "metric": metric, "value": value, "reported": (split, metric) == reported}
            for split, metrics in each.result.metrics.items()
            for metric, value in metrics.items()
            # A trial's run gets its test figures when it is the chosen one's, which is listed itself.
            if split == "validation" or not each.trial
        ]
    return pd.DataFrame(rows, columns=list(RUN_COLUMNS))


def bounds_of(metric: str) -> tuple[float, float]:
    """Return the least and the most that a metric can be; lm-eval's may have a filter after a comma."""
    name = metric.partition(",")[0]
    return BOUNDS.get("acc" if name.startswith("pass@") else name, (-math.inf, math.inf))


def results_by_seed(task: str, entry: Entry, trained: Sequence[Trained]) -> dict[int, Result]:
    """Return what an entry's runs with the chosen setting came to."""
    own = [each for each in trained if (each.task, each.entry) == (task, entry) and not each.trial]
    return {each.seed: each.result for each in own if each.result is not None}


class _Resampled(NamedTuple):
    """Hold scores on resampled rows, and the labels that say which rows they are."""

    scores: NDArray[Any]
    labels: NDArray[Any]


class _Scores:
    """Hold the reported scores of an entry on a task, by seed."""

    def __init__(self, task: str, entry: Entry, trained: Sequence[Trained]) -> None:
        own = [each for each in trained if (each.task, each.entry) == (task, entry)]
        trials, finals = ([each for each in own if each.trial == kind] for kind in (True, False))
        self.entry = entry
        self.results = results_by_seed(task, entry, trained)
        self.failed = len([each for each in finals or trials if each.failure is not None])
        self.setting = finals[0].setting if finals else ""
        self.scores = {seed: result.metrics[result.reported][result.metric] for seed, result in self.results.items()}

    @property
    def any(self) -> Result:
        return next(iter(self.results.values()))

    def resampled(self, seeds: Sequence[int]) -> _Resampled | None:
        """Return scores on resampled rows, where all runs have kept their predictions of the same rows."""
        kept: list[tuple[NDArray[Any], NDArray[Any]]] = []
        for seed in seeds:
            result = self.results[seed]
            found = RunDirectory(result.folder).predictions(result.reported)
            if found is None or not np.array_equal(found[1], kept[0][1] if kept else found[1]):
                return None
            kept.append(found)
        labels = kept[0][1]
        return _Resampled(
            resampled_scores(metric_function(self.any.metric), [each for each, _ in kept], labels), labels
        )


def methods_frame(plan: Plan, trained: Sequence[Trained]) -> pd.DataFrame:
    """Return a row for each entry on each task.

    Parameters
    ----------
    plan : Plan
    trained : sequence of Trained

    Returns
    -------
    pandas.DataFrame
        The score's median, mean, standard deviation and 95 % interval over seeds and rows; the difference from the
        reference with the same seeds and rows, and its interval; numbers, bytes, medians of time (s) and memory
        (bytes); what the paper prints. Scores are as the metric gives them, the paper's as it prints them, in per cent.
        Where predictions were not kept, or are not of the same rows, "rows_resampled" is False and intervals are of
        the seeds alone.
    """
    rows: list[dict[str, Any]] = []
    for task in plan.tasks:
        scores = {entry.name: _Scores(task, entry, trained) for entry in plan.selection.entries}
        resampled = {name: each.resampled(list(each.results)) for name, each in scores.items() if each.results}
        reference = plan.selection.reference
        for each in scores.values():
            row = {"task": task, **_row(each, len(plan.seeds)), **_statistics(each, resampled)}
            row |= _difference(each, scores[reference], resampled)
            rows.append(row | {"paper": each.entry.paper.get(task, math.nan)})
    return pd.DataFrame(rows)


def _row(scores: _Scores, planned: int) -> dict[str, Any]:
    entry = scores.entry
    row: dict[str, Any] = {
        "entry": entry.name,
        "title": entry.title,
        "method": entry.method,
        "family": entry.family,
        "setting": scores.setting,
        "seeds": len(scores.results),
        "seeds_planned": planned,
        "failed": scores.failed,
        "unavailable": entry.unavailable,
    }
    if scores.results:
        records = [result.record for result in scores.results.values()]
        row |= {name: scores.any.record[name] for name in _SIZES if name not in _OF_A_RUN}
        row |= {
            name: statistics.median(record[name] for record in records) for name in ("seconds", "peak_memory_bytes")
        }
        row |= {"split": scores.any.reported, "metric": scores.any.metric}
        row["greater_is_better"] = scores.any.record["greater_is_better"]
    return row | {"paper_numbers": entry.paper.get("numbers", math.nan)}


def _statistics(scores: _Scores, resampled: Mapping[str, _Resampled | None]) -> dict[str, Any]:
    values = list(scores.scores.values())
    rows = resampled.get(scores.entry.name)
    found = interval(values, None if rows is None else rows.scores)
    least, most = bounds_of(scores.any.metric) if values else (-math.inf, math.inf)
    return {
        "median": statistics.median(values) if values else math.nan,
        "mean": found.mean,
        "sd_of_seeds": statistics.stdev(values) if len(values) > 1 else math.nan,
        "low": max(found.low, least) if values else math.nan,
        "high": min(found.high, most) if values else math.nan,
        "rows_resampled": rows is not None,
    }


def _difference(scores: _Scores, reference: _Scores, resampled: Mapping[str, _Resampled | None]) -> dict[str, float]:
    """Return the paired difference from the reference: the same seeds, the same resampled rows."""
    seeds = [seed for seed in scores.scores if seed in reference.scores]
    if scores is reference or not seeds:
        return {"difference": math.nan, "difference_low": math.nan, "difference_high": math.nan}
    own, other = (
        resampled.get(each.entry.name) if len(seeds) == len(each.scores) else each.resampled(seeds)
        for each in (scores, reference)
    )
    together = None
    if own is not None and other is not None and np.array_equal(own.labels, other.labels):
        together = own.scores - other.scores
    found = interval([scores.scores[seed] - reference.scores[seed] for seed in seeds], together)
    return {"difference": found.mean, "difference_low": found.low, "difference_high": found.high}
