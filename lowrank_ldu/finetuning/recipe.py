"""Read recipes, and resolve them into the configuration of a run."""

from __future__ import annotations

import difflib
import tomllib
from dataclasses import dataclass, field
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lowrank_ldu.errors import OptionError
from lowrank_ldu.validation import shown

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

_TABLES = ("tasks", "variants", "methods", "comparisons", "paper")
# What a recipe says of itself, and the names by which it is asked for.
_TEXTS = ("title", "kind", "source", "model", "data", "method", "variant")
_OF_RECIPE = (*_TEXTS, "seeds")
_OF_OVERLAY = ("about", "methods", "model", "data", "method")
# What says the same in another way, or is of no use without its partner.
_REPLACED: Mapping[str, tuple[str, ...]] = {
    "warmup_ratio": ("warmup_steps",),
    "warmup_steps": ("warmup_ratio",),
    "num_train_epochs": ("max_steps",),
    "gradient_checkpointing": ("activation_checkpointing",),
    "activation_checkpointing": ("gradient_checkpointing",),
    "gradient_checkpointing_kwargs": ("activation_checkpointing_kwargs",),
    "activation_checkpointing_kwargs": ("gradient_checkpointing_kwargs",),
}
# Of numpy's generator, which every run sets.
LARGEST_SEED = 2**32 - 1


@dataclass(frozen=True)
class Recipe:
    """Hold a recipe as its file has it.

    Attributes
    ----------
    name : str
        Name of a shipped recipe, or the stem of a file's name.
    text : str
        The file's content.
    table : mapping
        The same, parsed.
    """

    name: str
    text: str
    table: Mapping[str, Any] = field(repr=False)

    @property
    def title(self) -> str:
        """What the recipe trains, in a line."""
        return str(self.table["title"])

    @property
    def kind(self) -> str:
        """Kind of its tasks, such as "text-classification"."""
        return str(self.table["kind"])

    @property
    def tasks(self) -> tuple[str, ...]:
        """Names of its tasks."""
        return tuple(self.table["tasks"])

    @property
    def variants(self) -> Mapping[str, str]:
        """Names of its variants, and what each one is."""
        return {name: str(table.get("about", "")) for name, table in self.table.get("variants", {}).items()}

    @property
    def comparisons(self) -> Mapping[str, str]:
        """Names of its comparisons of methods, and what each one is."""
        return {name: str(table.get("about", "")) for name, table in self.table.get("comparisons", {}).items()}

    @property
    def seeds(self) -> tuple[int, ...]:
        """Seeds that are trained when none is given."""
        return tuple(self.table["seeds"])


@dataclass(frozen=True)
class Choice:
    """Hold what a user asks for beside the recipe's name.

    Attributes
    ----------
    variant, method, model, data : str, optional
        Instead of the recipe's own.
    settings : mapping
        Keys and values that take the place of the recipe's.
    """

    variant: str | None = None
    method: str | None = None
    model: str | None = None
    data: str | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Resolved:
    """Hold a recipe's keys for one task, from all tables that count.

    Attributes
    ----------
    task, method, model : str
    variant, data : str or None
    values : mapping
        Every other key and its value.
    """

    task: str
    variant: str | None
    method: str
    model: str
    data: str | None
    values: Mapping[str, Any]


def list_recipes() -> tuple[str, ...]:
    """Return the names of the shipped recipes.

    Examples
    --------
    >>> list_recipes()
    ('digits', 'glue', 'image-classification', 'images', 'instruct', 'sentiment', 'text-to-image', 'textual-inversion')
    """
    folder = files("lowrank_ldu.finetuning") / "recipes"
    return tuple(sorted(each.name.removesuffix(".toml") for each in folder.iterdir() if each.name.endswith(".toml")))


def load_recipe(name: str | Path) -> Recipe:
    """Read a recipe by its name or from a file.

    Parameters
    ----------
    name : str or pathlib.Path
        A name of `list_recipes`, or the path of a TOML file.

    Returns
    -------
    Recipe

    Raises
    ------
    OptionError
        There is no such recipe, or the file is not one; the message says what is wrong with it.

    Examples
    --------
    >>> recipe = load_recipe("glue")
    >>> recipe.tasks
    ('mnli', 'sst2', 'mrpc', 'cola', 'qnli', 'qqp', 'rte', 'stsb')
    """
    shipped = list_recipes()
    if str(name) in shipped:
        where, stem = f"recipe {name}", str(name)
        text = (files("lowrank_ldu.finetuning") / "recipes" / f"{name}.toml").read_text(encoding="utf-8")
    else:
        path = Path(name)
        where, stem = str(path), path.stem
        if path.suffix != ".toml":
            raise OptionError(f"recipe is {str(name)!r}; accepted: {_near(str(name), shipped)}, or a .toml file")
        try:
            text = path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            reason = error.strerror if isinstance(error, OSError) else error.reason
            raise OptionError(f"{path}: cannot be read ({reason}); accepted: a recipe in TOML") from error
    try:
        table = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise OptionError(f"{where}: is not TOML ({error})") from error
    _check(table, where)
    return Recipe(stem, text, table)


def _check(table: Mapping[str, Any], where: str) -> None:
    """Refuse a table that is no recipe."""
    for name in ("title", "kind", "model", "method"):
        if name not in table:
            raise OptionError(f"{where}: has no {name}; accepted: a recipe with title, kind, model, method and tasks")
    for name in _TEXTS:
        if name in table and not isinstance(table[name], str):
            raise OptionError(f"{where}: {name} is {shown(table[name])}; accepted: a string")
    if not _seeds_of(table.get("seeds")):
        raise OptionError(
            f"{where}: seeds is {shown(table.get('seeds'))}; accepted: a list of different integers from 0 to "
            f"{LARGEST_SEED}"
        )
    if not table.get("tasks"):
        raise OptionError(f"{where}: has no [tasks.NAME]; accepted: a recipe with one task at least")
    for name in _TABLES:
        overlays = table.get(name, {})
        if not isinstance(overlays, dict) or not all(isinstance(each, dict) for each in overlays.values()):
            raise OptionError(f"{where}: {name} is {shown(overlays)}; accepted: tables [{name}.NAME]")
    variant = table.get("variant")
    if variant is not None and variant not in table.get("variants", {}):
        raise OptionError(f"{where}: variant is {variant!r}; accepted: {_near(variant, table.get('variants', {}))}")


def _seeds_of(value: object) -> bool:
    return (
        isinstance(value, list)
        and bool(value)
        and all(isinstance(seed, int) and not isinstance(seed, bool) and 0 <= seed <= LARGEST_SEED for seed in value)
        and len(set(value)) == len(value)
    )


def resolve(recipe: Recipe, task: str, choice: Choice) -> Resolved:
    """Put together the keys that count for a task.

    Later ones replace earlier ones: the recipe's, the task's, the method's, the variant's, the user's.

    Parameters
    ----------
    recipe : Recipe
    task : str
    choice : Choice

    Returns
    -------
    Resolved

    Raises
    ------
    OptionError
        The recipe has no such task or variant, or a setting has an option of its own.

    Examples
    --------
    >>> resolved = resolve(load_recipe("glue"), "rte", Choice(variant="section4a"))
    >>> resolved.values["learning_rate"], resolved.values["target_modules"][1]
    (0.0004, 'key')
    """
    table = recipe.table
    if task not in recipe.tasks:
        raise OptionError(f"task is {task!r}; accepted: {_near(task, recipe.tasks)}")
    variant = table.get("variant") if choice.variant is None else choice.variant
    if variant is not None and variant not in recipe.variants:
        accepted = _near(variant, recipe.variants) if recipe.variants else f"none, {recipe.name} has no variants"
        raise OptionError(f"variant is {variant!r}; accepted: {accepted}")
    for name in choice.settings:
        if name in {"model", "data", "method", "variant", "task"}:
            raise OptionError(f"setting {name} has an option of its own; accepted: --{name}")
    of_task = table["tasks"][task]
    of_variant = {} if variant is None else table["variants"][variant]
    chosen = {**table, **of_task, **of_variant}
    method = str(choice.method or chosen["method"])
    layers: Sequence[Mapping[str, Any]] = (
        {name: value for name, value in table.items() if name not in {*_OF_RECIPE, *_TABLES}},
        of_task,
        *(each.get("methods", {}).get(method, {}) for each in (table, of_task)),
        of_variant,
        of_variant.get("methods", {}).get(method, {}),
        choice.settings,
    )
    values = {name: value for name, value in layered(*layers).items() if name not in _OF_OVERLAY}
    data = choice.data or chosen.get("data")
    return Resolved(task, variant, method, str(choice.model or chosen["model"]), data, values)


def layered(*layers: Mapping[str, Any]) -> dict[str, Any]:
    """Put settings together, of which later ones replace earlier ones.

    A later key also takes the place of an earlier one that says the same in another way. Where one layer has both, both
    stay, to be refused.

    Examples
    --------
    >>> layered({"warmup_ratio": 0.06, "r": 8}, {"warmup_steps": 10}, {"r": 4})
    {'r': 4, 'warmup_steps': 10}
    """
    values: dict[str, Any] = {}
    for layer in layers:
        replaced = {other for name in layer for other in _REPLACED.get(name, ())}
        # The steps between evaluations are of no use where these are by epochs.
        if layer.get("eval_strategy", "steps") != "steps":
            replaced.add("eval_steps")
        values = {name: value for name, value in values.items() if name not in replaced} | dict(layer)
    return values


def check_seed(seed: int) -> None:
    """Refuse a seed that not all generators take.

    Raises
    ------
    OptionError
        The message names the seed.
    """
    if not 0 <= seed <= LARGEST_SEED:
        raise OptionError(f"seed is {seed}; accepted: 0 to {LARGEST_SEED}")


def parse_setting(text: str) -> tuple[str, Any]:
    """Read KEY=VALUE, where the value is written as in TOML.

    What TOML cannot read is a string.

    Raises
    ------
    OptionError
        There is no key or no value.

    Examples
    --------
    >>> parse_setting("learning_rate=1e-3"), parse_setting("lr_scheduler_type=cosine")
    (('learning_rate', 0.001), ('lr_scheduler_type', 'cosine'))
    """
    key, equals, value = (part.strip() for part in text.partition("="))
    if not (key and equals and value):
        raise OptionError(f"setting is {text!r}; accepted: KEY=VALUE, such as learning_rate=1e-3")
    try:
        return key, tomllib.loads(f"value = {value}")["value"]
    except tomllib.TOMLDecodeError:
        return key, value


def _near(name: str, accepted: Iterable[str]) -> str:
    """Return the accepted names that are nearest to a name."""
    names = list(accepted)
    return ", ".join(difflib.get_close_matches(name, names, n=3) or names)
