"""Check what a recipe says of a comparison."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, NamedTuple

from lowrank_ldu.errors import OptionError
from lowrank_ldu.validation import is_several, shown

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from lowrank_ldu.finetuning.recipe import Recipe

_COUNTS = ("trials", "trial_seeds", "seeds")
_OF_COMPARISON = ("about", *_COUNTS, "reference", "sweep", "search", "settings", "metrics", "entries")

# Scores of which are of different rows.
_OF_EVALUATION = {
    "max_eval_samples", "max_predict_samples", "validation_split", "validation_fraction", "validation_rows",
    "validation_images", "validation_draws", "test_split", "rendering", "instance_prompt",
}  # fmt: skip
# Name of the figure that methods are judged by.
SCORE = "score"
NUMBERS = "numbers"


class Paper(NamedTuple):
    """Hold what a paper prints of an entry.

    Attributes
    ----------
    scores : mapping
        Task to its score, and "numbers" to the count of trained parameters.
    figures : mapping
        Task to names of further figures to their values.
    """

    scores: Mapping[str, float]
    figures: Mapping[str, Mapping[str, float]]


def check_comparison(table: Mapping[str, Any], where: str) -> None:
    """Check the keys of a comparison and their types.

    Raises
    ------
    OptionError
        The message names the key.
    """
    for name in table:
        if name not in _OF_COMPARISON:
            raise OptionError(f"{where} has {name}; accepted: {', '.join(_OF_COMPARISON)}")
    for name in _COUNTS:
        value = table.get(name, 1)
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise OptionError(f"{where}: {name} is {shown(value)}; accepted: an integer from 1 on")
    for name in ("settings", "entries", "search"):
        if not isinstance(table.get(name, {}), dict):
            raise OptionError(f"{where}: {name} is {shown(table[name])}; accepted: a table")
    for name, entry in table.get("entries", {}).items():
        if not isinstance(entry, dict):
            raise OptionError(f"{where}: entry {name} is {shown(entry)}; accepted: a table")
    if "sweep" in table:
        _check_sweep(table["sweep"], table.get("entries", {}), where)


def _check_sweep(sweep: Any, entries: Mapping[str, Any], where: str) -> None:
    having = {name: entry[sweep] for name, entry in entries.items() if sweep in entry} if isinstance(sweep, str) else {}
    if not having:
        raise OptionError(f"{where}: sweep is {shown(sweep)}; accepted: a key of which entries have a positive number")
    for name, value in having.items():
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < math.inf:
            raise OptionError(
                f"{where}: sweep is {sweep}, of which entry {name} has {shown(value)}; accepted: positive numbers"
            )


def checked_search(search: Mapping[str, Any]) -> Mapping[str, Sequence[Any]]:
    """Check that every key of a search has a list of values.

    Raises
    ------
    OptionError
        The message names the key.
    """
    if not isinstance(search, dict):
        raise OptionError(f"search is {shown(search)}; accepted: a table of keys with lists of values")
    for key, values in search.items():
        if not is_several(values) or not values:
            raise OptionError(f"search of {key} is {shown(values)}; accepted: a list of values")
        if key in _OF_EVALUATION:
            raise OptionError(f"search has {key}, by which settings would be chosen on different rows; accepted: --set")
        if len({repr(value) for value in values}) < len(values):
            raise OptionError(f"search of {key} is {shown(values)}; accepted: different values")
    return search


def checked_metrics(metrics: Any, where: str) -> dict[str, str]:
    """Return names of further figures and where runs have them.

    Parameters
    ----------
    metrics : list or dict
        "SPLIT/METRIC" or "SPLIT" of each figure, or a table of names to those.
    where : str
        For messages.

    Returns
    -------
    dict
        Name to "SPLIT/METRIC" or "SPLIT".

    Raises
    ------
    OptionError
        It is neither, or a name cannot be.

    Examples
    --------
    >>> checked_metrics(["mmlu/acc"], "here"), checked_metrics({"mmlu": "mmlu/acc"}, "here")
    ({'mmlu/acc': 'mmlu/acc'}, {'mmlu': 'mmlu/acc'})
    """
    named = metrics if isinstance(metrics, dict) else {}
    if is_several(metrics) and all(isinstance(each, str) for each in metrics):
        named = dict(zip(metrics, metrics, strict=True))
    if len(named) < len(metrics if is_several(metrics) or isinstance(metrics, dict) else [metrics]):
        accepted = '["SPLIT/METRIC"], each once, or a table of names to "SPLIT/METRIC"'
        raise OptionError(f"{where}: metrics is {shown(metrics)}; accepted: {accepted}")
    for name, source in named.items():
        if not isinstance(source, str) or not all(part.strip() for part in source.split("/", 1)):
            raise OptionError(f'{where}: metrics has {name} = {shown(source)}; accepted: "SPLIT" or "SPLIT/METRIC"')
        if name in {"", SCORE}:
            raise OptionError(f"{where}: metrics has {name!r}; accepted: other names than {SCORE!r} and ''")
    return named


def checked_paper(paper: Any, recipe: Recipe, entry: str, metrics: Mapping[str, str]) -> Paper:
    """Return what a table says that a paper prints.

    Parameters
    ----------
    paper : dict
        "numbers" and tasks to numbers; a task also to a table of names of `metrics`, and of "score", to numbers.
    recipe : Recipe
    entry : str
        Name of the entry, for messages.
    metrics : mapping
        Of `checked_metrics`.

    Returns
    -------
    Paper

    Raises
    ------
    OptionError
        A task or a figure is unknown, or a value is no number.
    """
    where = f"recipe {recipe.name}: paper of {entry}"
    if not isinstance(paper, dict):
        raise OptionError(f"{where} is {shown(paper)}; accepted: a table")
    scores: dict[str, float] = {}
    figures: dict[str, dict[str, float]] = {}
    for key, value in paper.items():
        if key not in {NUMBERS, *recipe.tasks}:
            raise OptionError(f"{where} has {key}; accepted: {NUMBERS}, {', '.join(recipe.tasks)}")
        if key == NUMBERS or not isinstance(value, dict):
            scores[key] = _number(value, f"{where} has {key}")
            continue
        for name, figure in value.items():
            if name not in {SCORE, *metrics}:
                raise OptionError(f"{where} has {name} of {key}; accepted: {', '.join([SCORE, *metrics])}")
            number = _number(figure, f"{where} has {name} of {key}")
            if name == SCORE:
                scores[key] = number
            else:
                figures.setdefault(key, {})[name] = number
    return Paper(scores, figures)


def _number(value: Any, what: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise OptionError(f"{what} {shown(value)}; accepted: a number")
    return value
