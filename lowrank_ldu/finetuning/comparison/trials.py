"""List the settings that are tried for a method."""

from __future__ import annotations

import itertools
import math
import random
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from lowrank_ldu.errors import OptionError
from lowrank_ldu.finetuning.configuration import configure
from lowrank_ldu.finetuning.recipe import Choice, layered

if TYPE_CHECKING:
    from lowrank_ldu.finetuning.comparison.entries import Entry
    from lowrank_ldu.finetuning.recipe import Recipe

# What stays as it is in names of folders.
_PLAIN = "._-+[]() ,'"
# Half a power of ten, so that the ladder spans a hundred with five trials.
_STEP = math.sqrt(10)


def chosen_by(entry: Entry, choice: Choice) -> Choice:
    """Return a user's choice with an entry's method and settings.

    What the user sets comes last.
    """
    return Choice(
        variant=choice.variant,
        method=entry.method,
        model=choice.model,
        data=choice.data,
        settings=layered(entry.settings, choice.settings),
    )


def trial_settings(recipe: Recipe, task: str, entry: Entry, choice: Choice, trials: int) -> list[dict[str, Any]]:
    """List the settings that are tried for an entry, the recipe's own first.

    Without a search of its own they are learning rates: the recipe's, then by half a power of ten below and above it,
    then by a whole one, and so on. With one they are that many points of its grid, in an order that is drawn with a
    fixed seed. So a larger number of trials begins with the same ones.

    Parameters
    ----------
    recipe : Recipe
    task : str
    entry : Entry
    choice : Choice
        Of the user.
    trials : int

    Returns
    -------
    list of dict

    Raises
    ------
    OptionError
        A key is no option, or the grid has fewer points than there are trials.
    """
    if entry.search:
        grid = [dict(zip(entry.search, values, strict=True)) for values in itertools.product(*entry.search.values())]
        if trials > len(grid):
            raise OptionError(
                f"trials is {trials}, and the search of {entry.name} has {len(grid)} points; accepted: 1 to {len(grid)}"
            )
        random.Random(0).shuffle(grid)  # noqa: S311  # an order, not a secret
        return grid[:trials]
    config = configure(recipe, task, chosen_by(entry, choice), seed=0)
    key, rate = "learning_rate", config.training.get("learning_rate", 5e-5)
    if config.method == "head" and config.head_learning_rate is not None:
        key, rate = "head_learning_rate", config.head_learning_rate
    return [{key: rounded(rate * factor)} for factor in itertools.islice(_factors(), trials)]


def _factors() -> Any:
    """Go through 1, and the powers of the step below and above it."""
    yield 1.0
    for power in itertools.count(1):
        yield _STEP**-power
        yield _STEP**power


def rounded(value: float) -> float:
    """Return a number of two digits.

    Examples
    --------
    >>> rounded(0.0031622)
    0.0032
    """
    return float(f"{value:.1e}")


def setting_name(setting: dict[str, Any]) -> str:
    """Return the name of a setting, for folders and tables.

    Examples
    --------
    >>> setting_name({"learning_rate": 0.001, "r": 8})
    'learning_rate=0.001,r=8'
    >>> setting_name({"target_modules": "a/b"})
    'target_modules=a%2Fb'
    """
    return ",".join(f"{key}={quote(str(value), safe=_PLAIN)}" for key, value in setting.items())
