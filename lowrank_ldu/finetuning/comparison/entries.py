"""Say what a comparison of methods has a row for."""

from __future__ import annotations

import difflib
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from lowrank_ldu.errors import OptionError
from lowrank_ldu.finetuning.methods import METHODS, get_method
from lowrank_ldu.validation import is_several, shown

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from lowrank_ldu.finetuning.recipe import Recipe

_OF_ENTRY = ("method", "title", "family", "search", "paper")
_OF_COMPARISON = ("about", "trials", "seeds", "reference", "sweep", "search", "settings", "entries")


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
        Keys of the recipe that differ, such as {"r": 8}.
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
    present = [entry.name for entry in entries]
    if reference is None:
        reference = table.get("reference")
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


def _entry(
    recipe: Recipe, name: str, own: Mapping[str, Any], table: Mapping[str, Any], *, known: Sequence[str]
) -> Entry:
    if "method" not in own:
        raise OptionError(f"recipe {recipe.name}: entry {name} has no method; accepted: {', '.join(METHODS)}")
    method = own["method"]
    if method not in METHODS:
        near = difflib.get_close_matches(str(method), known, n=3) or known
        raise OptionError(f"method is {method!r}; accepted: {', '.join(near)}")
    settings = {key: value for key, value in own.items() if key not in _OF_ENTRY}
    return Entry(
        name=name,
        title=str(own.get("title", get_method(method).title)),
        method=method,
        family=str(own.get("family", get_method(method).title)),
        settings={**table.get("settings", {}), **settings},
        search=checked_search(own.get("search", table.get("search", {}))),
        paper=own.get("paper", {}) if "paper" in own or settings else recipe.table.get("paper", {}).get(method, {}),
        unavailable=get_method(method).unavailable(),
    )


def checked_search(search: Mapping[str, Any]) -> Mapping[str, Sequence[Any]]:
    """Check that every key of a search has a list of values.

    Raises
    ------
    OptionError
        The message names the key.
    """
    for key, values in search.items():
        if not is_several(values) or not values:
            raise OptionError(f"search of {key} is {shown(values)}; accepted: a list of values")
    return search
