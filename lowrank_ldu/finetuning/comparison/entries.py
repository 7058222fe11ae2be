"""Say what a comparison of methods has a row for."""

from __future__ import annotations

import difflib
import math
import re
from collections import Counter
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from lowrank_ldu.errors import OptionError
from lowrank_ldu.finetuning.comparison.checks import check_comparison, checked_metrics, checked_paper, checked_search
from lowrank_ldu.finetuning.methods import METHODS, get_method
from lowrank_ldu.finetuning.recipe import layered
from lowrank_ldu.validation import shown

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from lowrank_ldu.finetuning.recipe import Recipe

# Names are folders, too.
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
_OF_ENTRY = ("method", "title", "family", "search", "paper")


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
    paper_figures : mapping
        Task to names of further figures to what the paper prints.
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
    paper_figures: Mapping[str, Mapping[str, float]] = field(default_factory=dict)

    @property
    def points(self) -> int | None:
        """Number of settings that the search has; None without one."""
        return math.prod(map(len, self.search.values())) if self.search else None


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
    trials : int or None
        Settings that are tried for each entry; None for as many as its search has.
    trial_seeds : int
        Seeds that each of them is tried with.
    seeds : int or None
        Number of seeds; None for the recipe's own.
    sweep : str or None
        Setting in which the entries differ, which their scores are drawn against.
    metrics : mapping
        Names of further figures to where runs have them, "SPLIT/METRIC".
    """

    name: str | None
    entries: tuple[Entry, ...]
    reference: str
    trials: int | None
    seeds: int | None
    sweep: str | None = None
    metrics: Mapping[str, str] = field(default_factory=dict)
    trial_seeds: int = 1

    def searching(self, search: Mapping[str, Any]) -> Selection:
        """Return the selection with the same search for all entries, of which every setting is tried."""
        checked = checked_search(search)
        entries = tuple(replace(entry, search=checked) for entry in self.entries)
        # The comparison's number is for the search that this one replaces.
        return replace(self, entries=entries, trials=None)


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
    where = f"recipe {recipe.name}: comparison {chosen}"
    check_comparison(table, where)
    metrics = checked_metrics(table.get("metrics", {}), where)
    own = table.get("entries", {})
    if not names and not own:
        accepted = ", ".join(recipe.comparisons) or f"--methods with some of {', '.join(METHODS)}"
        raise OptionError(f"recipe {recipe.name} has no entries to compare; accepted: {accepted}")
    entries = tuple(
        _entry(recipe, name, own.get(name, {"method": name}), table, known=list(dict.fromkeys([*own, *METHODS])))
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
    return Selection(
        name=chosen,
        entries=entries,
        reference=reference,
        trials=table.get("trials"),
        seeds=table.get("seeds"),
        sweep=table.get("sweep"),
        metrics=metrics,
        trial_seeds=table.get("trial_seeds", 1),
    )


def _chosen(recipe: Recipe, comparison: str | None) -> str | None:
    if comparison is None:
        return next(iter(recipe.comparisons), None)
    if comparison not in recipe.comparisons:
        near = difflib.get_close_matches(comparison, recipe.comparisons, n=3) or recipe.comparisons
        raise OptionError(
            f"comparison is {comparison!r}; accepted: {', '.join(near) or f'none, recipe {recipe.name} has none'}"
        )
    return comparison


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
    # A comparison's names of figures are its own; what the recipe says of a method may be in those of any.
    of_entry, comparisons = "paper" in own or settings, recipe.table.get("comparisons", {}).values()
    metrics = {
        name: source
        for each in ([table] if of_entry else [table, *comparisons])
        for name, source in checked_metrics(each.get("metrics", {}), f"recipe {recipe.name}").items()
    }
    given = own.get("paper", {}) if of_entry else recipe.table.get("paper", {}).get(method, {})
    paper = checked_paper(given, recipe, name, metrics)
    return Entry(
        name=name,
        title=str(own.get("title", get_method(method).title)),
        method=method,
        family=str(own.get("family", get_method(method).title)),
        settings=layered(table.get("settings", {}), settings),
        search=checked_search(own.get("search", table.get("search", {}))),
        paper=paper.scores,
        paper_figures=paper.figures,
        own=frozenset(settings),
        unavailable=get_method(method).unavailable(),
    )
