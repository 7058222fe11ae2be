"""Put figures of runs that no choice is made by into a pandas frame."""

from __future__ import annotations

import math
import statistics
from typing import TYPE_CHECKING, Any, NamedTuple

import pandas as pd

from lowrank_ldu.finetuning.comparison.checks import SCORE
from lowrank_ldu.finetuning.comparison.frames import bounds_of, results_by_seed
from lowrank_ldu.finetuning.comparison.intervals import interval

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from lowrank_ldu.finetuning.comparison.compare import Trained
    from lowrank_ldu.finetuning.comparison.entries import Entry
    from lowrank_ldu.finetuning.comparison.plan import Plan

FIGURE_COLUMNS = (
    "task", "entry", "title", "method", "figure", "split", "metric", "judged", "seeds", "seeds_planned", "mean",
    "sd_of_seeds", "low", "high", "rows_resampled", "difference", "difference_low", "difference_high", "paper",
    "missing",
)  # fmt: skip
_OF_SCORE = (
    "split", "metric", "seeds", "mean", "sd_of_seeds", "low", "high", "rows_resampled", "difference", "difference_low",
    "difference_high", "paper",
)  # fmt: skip
# Of the errors of figures, which lm-eval gives beside them.
_ERROR = "_stderr"


class Figure(NamedTuple):
    """Hold a figure of a run, or why it has none.

    Attributes
    ----------
    metric : str or None
        Its full name among the split's.
    value : float
        nan where there is none.
    missing : str or None
        Why there is none.
    """

    metric: str | None
    value: float
    missing: str | None = None


def find_figure(metrics: Mapping[str, Mapping[str, float]], source: str) -> Figure:
    """Find a figure among a run's metrics.

    Parameters
    ----------
    metrics : mapping
        Split to metric to value, as in `Result`.
    source : str
        "SPLIT/METRIC", where lm-eval's filter, after a comma, can be left out if there is one alone; or "SPLIT", where
        that has one figure, its standard error aside.

    Returns
    -------
    Figure

    Examples
    --------
    >>> find_figure({"bbh": {"exact_match,get-answer": 0.33}}, "bbh/exact_match")
    Figure(metric='exact_match,get-answer', value=0.33, missing=None)
    >>> find_figure({"drop": {"em": 0.31, "f1": 0.4}}, "drop").missing
    'drop has em, f1, and one of them has to be named'
    """
    split, _, name = source.partition("/")
    if split not in metrics:
        return Figure(None, math.nan, f"the run has no {split}; it has {', '.join(metrics)}")
    found = metrics[split]
    candidates = [each for each in found if not each.partition(",")[0].endswith(_ERROR)]
    chosen = [name] if name in found else [each for each in candidates if name in {"", each.partition(",")[0]}]
    if not chosen:
        return Figure(None, math.nan, f"{split} has no {name or 'figure'}; it has {', '.join(candidates) or 'nothing'}")
    if len(chosen) > 1:
        return Figure(None, math.nan, f"{split} has {', '.join(chosen)}, and one of them has to be named")
    value = found[chosen[0]]
    if not math.isfinite(value):
        return Figure(chosen[0], math.nan, f"{chosen[0]} is {value}")
    return Figure(chosen[0], value)


def figures_frame(plan: Plan, trained: Sequence[Trained], methods: pd.DataFrame) -> pd.DataFrame:
    """Return a row for each entry, task and figure.

    Figures are the score that methods are judged by, and those that the comparison names (`metrics`).

    Parameters
    ----------
    plan : Plan
    trained : sequence of Trained
    methods : pandas.DataFrame
        Of `methods_frame`.

    Returns
    -------
    pandas.DataFrame
        Columns `FIGURE_COLUMNS`: mean and standard deviation over the seeds that have the figure, its 95 % interval,
        the difference from the reference with the same seeds and its interval, and what the paper prints. "judged"
        marks the score, whose figure is named "score" and whose row is that of `methods`. Intervals of the others are
        of the seeds alone: their rows are not kept. "missing" says why seeds have none.
    """
    rows: list[dict[str, Any]] = []
    reference = plan.selection.reference
    for task in plan.tasks:
        of_task = methods[methods["task"] == task]
        scores = {str(row["entry"]): row for row in of_task.to_dict("records")}
        for entry in plan.selection.entries:
            score = {name: scores[entry.name].get(name) for name in _OF_SCORE}
            rows.append(_named(plan, task, entry, SCORE) | {"judged": True} | score)
        for name, source in plan.selection.metrics.items():
            found = {
                entry.name: {
                    seed: find_figure(result.metrics, source)
                    for seed, result in results_by_seed(task, entry, trained).items()
                }
                for entry in plan.selection.entries
            }
            for entry in plan.selection.entries:
                row = _named(plan, task, entry, name) | {"judged": False, "split": source.partition("/")[0]}
                row |= _statistics(found[entry.name], {} if entry.name == reference else found[reference])
                rows.append(row | {"paper": entry.paper_figures.get(task, {}).get(name, math.nan)})
    return pd.DataFrame(rows, columns=list(FIGURE_COLUMNS))


def _named(plan: Plan, task: str, entry: Entry, figure: str) -> dict[str, Any]:
    return {
        "task": task,
        "entry": entry.name,
        "title": entry.title,
        "method": entry.method,
        "figure": figure,
        "seeds_planned": len(plan.seeds),
    }


def _statistics(own: Mapping[int, Figure], reference: Mapping[int, Figure]) -> dict[str, Any]:
    values, others = (
        {seed: each.value for seed, each in some.items() if each.missing is None} for some in (own, reference)
    )
    found = interval(list(values.values()))
    metric = next((each.metric for each in own.values() if each.missing is None), None)
    least, most = (-math.inf, math.inf) if metric is None else bounds_of(metric)
    if not least <= found.mean <= most:  # a share in per cent
        least, most = -math.inf, math.inf
    apart = interval([value - others[seed] for seed, value in values.items() if seed in others])
    return {
        "metric": metric,
        "seeds": len(values),
        "mean": found.mean,
        "sd_of_seeds": statistics.stdev(values.values()) if len(values) > 1 else math.nan,
        # What is no number stays so.
        "low": found.low if math.isnan(found.low) else max(found.low, least),
        "high": found.high if math.isnan(found.high) else min(found.high, most),
        "rows_resampled": False,
        "difference": apart.mean,
        "difference_low": apart.low,
        "difference_high": apart.high,
        "missing": _missing(own),
    }


def _missing(own: Mapping[int, Figure]) -> str | None:
    """Say why seeds have no figure."""
    reasons: dict[str, list[int]] = {}
    for seed, each in own.items():
        if each.missing is not None:
            reasons.setdefault(each.missing, []).append(seed)
    whole = len(reasons) == 1 and not any(each.missing is None for each in own.values())
    told = [reason if whole else f"seed {', '.join(map(str, seeds))}: {reason}" for reason, seeds in reasons.items()]
    return "; ".join(told) or None
