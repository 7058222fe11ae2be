"""Say what a comparison of methods has a row for."""

from __future__ import annotations

import difflib
import math
import re
from collections import Counter
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from lowrank_ldu.errors import OptionError
from lowrank_ldu.finetuning.methods import METHODS, get_method
from lowrank_ldu.validation import is_several, shown

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from lowrank_ldu.finetuning.recipe import Recipe

# Names are folders, too.
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
_OF_ENTRY = ("method", "title", "family", "search", "paper")
_OF_COMPARISON = ("about", "trials", "seeds", "reference", "sweep", "search", "settings", "entries")


# Scores of which are of different rows.
_OF_EVALUATION = {
    "max_eval_samples", "validation_split", "validation_fraction", "validation_rows", "validation_images",
    "validation_draws", "test_split", "rendering", "instance_prompt",
}  # fmt: skip


@dataclass(frozen=True)
class Entry:
    """Hold a method and its settings, which are compared with others.

    Attributes
    ----------
    name : str
        For folders and options, "lora-8".
    title : str
        For tables and plots, "LoRA r = 8".
    method : str
        Name of a method of fine-tuning.
    family : str
        Name of the line that joins it, in plots, with what differs from it in size alone.
    settings : mapping
        Keys of the recipe that differ, such as {"r": 8}; the comparison's own among them.
    own : frozenset of str
        Those of the entry alone.
    search : mapping
        Keys to the values that are tried; empty for the learning rates around the recipe's.
    paper : mapping
        Task to the score that the paper prints, and "numbers" to its count of trained parameters.
    unavailable : str, optional
        Why the method cannot be used here.
    """

    name: str
    title: str
    method: str
    family: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    search: Mapping[str, Sequence[Any]] = field(default_factory=dict)
    paper: Mapping[str, float] = field(default_factory=dict)
    unavailable: str | None = None
    own: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Selection:
    """Hold the entries of a comparison, and what it says of itself.

    Attributes
    ----------
    name : str or None
        Of the recipe's comparison.
    entries : tuple of Entry
    reference : str
        Name of the entry that the others are compared with.
    trials : int
        Settings that are tried for each entry.
    seeds : int or None
        Number of seeds; None for the recipe's own.
    sweep : str or None
        Setting in which the entries differ, which their scores are drawn against.
    """

    name: str | None
    entries: tuple[Entry, ...]
    reference: str
    trials: int
    seeds: int | None
    sweep: str | None = None

    def searching(self, search: Mapping[str, Any]) -> Selection:
        """Return the selection with the same search for all entries."""
        checked = checked_search(search)
        return replace(self, entries=tuple(replace(entry, search=checked) for entry in self.entries))


def select_entries(
    recipe: Recipe, names: Sequence[str] = (), *, comparison: str | None = None, reference: str | None = None
) -> Selection:
    """Find the entries of a comparison by their names.

    Parameters
    ----------
    recipe : Recipe
    names : sequence of str
        Of entries of the recipe's comparison, or of methods; all entries of the comparison if not given.
    comparison : str, optional
        One of the recipe's. The first one, if not given; names of methods need none.
    reference : str, optional
        Name of an entry; the comparison's own, or else the first one, if not given.

    Returns
    -------
    Selection

    Raises
    ------
    OptionError
        A name is none of an entry or a method, or an entry in the recipe is not one.

    Examples
    --------
    >>> from lowrank_ldu.finetuning import load_recipe
    >>> selection = select_entries(load_recipe("glue"), ["lora", "loldu"])
    >>> [entry.title for entry in selection.entries], selection.entries[1].paper["cola"]
    (['LoRA', 'LoLDU'], 63.8)
    """
    chosen = _chosen(recipe, comparison)
    table = {} if chosen is None else recipe.table["comparisons"][chosen]
    _check(table, f"recipe {recipe.name}: comparison {chosen}")
    own = table.get("entries", {})
    if not names and not own:
        accepted = ", ".join(recipe.comparisons) or f"--methods with some of {', '.join(METHODS)}"
        raise OptionError(f"recipe {recipe.name} has no entries to compare; accepted: {accepted}")
    entries = tuple(
        _entry(recipe, name, own.get(name, {"method": name}), table, known=[*own, *METHODS])
        for name in dict.fromkeys(names or own)
    )
    titles = Counter(entry.title for entry in entries)
    entries = tuple(
        replace(entry, title=f"{entry.title} ({entry.name})") if titles[entry.title] > 1 else entry for entry in entries
    )
    present = [entry.name for entry in entries]
    if reference is None:
        reference = table.get("reference", present[0])
        if own and "reference" in table and reference not in own:
            raise OptionError(f"recipe {recipe.name}: reference is {shown(reference)}; accepted: {', '.join(own)}")
        # Another one where the recipe's is not among those that are asked for.
        reference = reference if reference in present else present[0]
    elif reference not in present:
        raise OptionError(f"reference is {reference!r}; accepted: {', '.join(present)}")
    return Selection(chosen, entries, reference, table.get("trials", 1), table.get("seeds"), table.get("sweep"))


def _chosen(recipe: Recipe, comparison: str | None) -> str | None:
    if comparison is None:
        return next(iter(recipe.comparisons), None)
    if comparison not in recipe.comparisons:
        near = difflib.get_close_matches(comparison, recipe.comparisons, n=3) or recipe.comparisons
        raise OptionError(
            f"comparison is {comparison!r}; accepted: {', '.join(near) or f'none, recipe {recipe.name} has none'}"
        )
    return comparison


def _check(table: Mapping[str, Any], where: str) -> None:
    for name in table:
        if name not in _OF_COMPARISON:
            raise OptionError(f"{where} has {name}; accepted: {', '.join(_OF_COMPARISON)}")
    for name in ("trials", "seeds"):
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


def _entry(
    recipe: Recipe, name: str, own: Mapping[str, Any], table: Mapping[str, Any], *, known: Sequence[str]
) -> Entry:
    if _NAME.fullmatch(name) is None:
        raise OptionError(
            f"recipe {recipe.name}: entry is named {shown(name)}; accepted: up to 100 letters, digits, '.', '_' and '-'"
        )
    for key in ("title", "family"):
        if not isinstance(own.get(key, ""), str):
            raise OptionError(f"recipe {recipe.name}: {key} of {name} is {shown(own[key])}; accepted: a string")
    if "method" not in own:
        raise OptionError(f"recipe {recipe.name}: entry {name} has no method; accepted: {', '.join(METHODS)}")
    method = own["method"]
    if not isinstance(method, str) or method not in METHODS:
        near = difflib.get_close_matches(str(method), known, n=3) or known
        raise OptionError(f"method is {method!r}; accepted: {', '.join(near)}")
    settings = {key: value for key, value in own.items() if key not in _OF_ENTRY}
    paper = own.get("paper", {}) if "paper" in own or settings else recipe.table.get("paper", {}).get(method, {})
    if not isinstance(paper, dict):
        raise OptionError(f"recipe {recipe.name}: paper of {name} is {shown(paper)}; accepted: a table")
    for key, value in paper.items():
        if key not in {"numbers", *recipe.tasks}:
            raise OptionError(
                f"recipe {recipe.name}: paper of {name} has {key}; accepted: numbers, {', '.join(recipe.tasks)}"
            )
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise OptionError(f"recipe {recipe.name}: paper of {name} has {key} {shown(value)}; accepted: a number")
    return Entry(
        name=name,
        title=str(own.get("title", get_method(method).title)),
        method=method,
        family=str(own.get("family", get_method(method).title)),
        settings={**table.get("settings", {}), **settings},
        search=checked_search(own.get("search", table.get("search", {}))),
        paper=paper,
        own=frozenset(settings),
        unavailable=get_method(method).unavailable(),
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
