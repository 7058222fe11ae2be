"""Check a resolved recipe: what one run is told, to the last option."""

from __future__ import annotations

import dataclasses
import difflib
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from lowrank_ldu.errors import OptionError
from lowrank_ldu.finetuning.methods import get_method
from lowrank_ldu.finetuning.recipe import Choice, Recipe, check_seed, resolve
from lowrank_ldu.finetuning.tasks import get_kind
from lowrank_ldu.finetuning.training_options import checked_training, refuse_reserved, training_names
from lowrank_ldu.validation import check_count, is_several, shown

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

_OF_MODEL = ("target_modules", "modules_to_save", "head_learning_rate", "head_epochs")
# As near as a slip of the keyboard; a method names what is nearest among its own options.
_NEAR = 0.8


@dataclass(frozen=True)
class RunConfig:
    """Hold everything that determines the numbers of a run.

    Attributes
    ----------
    recipe, kind, task, model, method : str
    variant, data : str or None
    method_options : dict
        Of the method, with its defaults.
    target_modules : list of str, str or None
        Layers that get an adapter; None for methods without.
    modules_to_save : list of str or None
        Modules that are trained whole; None for the model's head.
    head_learning_rate : float or None
        Of those modules; None for the learning rate of the rest.
    head_epochs : int
        Epochs in which those modules are trained alone, before a method prepares the model.
    task_options : dict
        Of the kind of task, with its defaults.
    training : dict
        Options of transformers' Trainer.
    seed : int
    """

    recipe: str
    kind: str
    task: str
    variant: str | None
    model: str
    data: str | None
    method: str
    method_options: dict[str, Any] = field(default_factory=dict)
    target_modules: list[str] | str | None = None
    modules_to_save: list[str] | None = None
    head_learning_rate: float | None = None
    head_epochs: int = 0
    task_options: dict[str, Any] = field(default_factory=dict)
    training: dict[str, Any] = field(default_factory=dict)
    seed: int = 0

    def as_dict(self) -> dict[str, Any]:
        """Return the fields as a dictionary, as they are written to disk."""
        return dataclasses.asdict(self)

    def head_dict(self) -> dict[str, Any]:
        """Return what determines a head that is trained alone, the model and the data aside."""
        rate = self.training.get("learning_rate") if self.head_learning_rate is None else self.head_learning_rate
        names = ("kind", "task", "modules_to_save", "head_epochs", "task_options", "seed")
        return {name: getattr(self, name) for name in names} | {"learning_rate": rate}


def configure(recipe: Recipe, task: str, choice: Choice, *, seed: int) -> RunConfig:
    """Make the configuration of one run.

    Parameters
    ----------
    recipe : Recipe
    task : str
    choice : Choice
    seed : int

    Returns
    -------
    RunConfig

    Raises
    ------
    OptionError
        A key is unknown, of another type, or of no use to the method; the message names the nearest one. Or the seed is
        out of range.
    """
    check_seed(seed)
    resolved = resolve(recipe, task, choice)
    kind, method = get_kind(recipe.kind), get_method(resolved.method)
    values = dict(resolved.values)
    refuse_reserved(values)
    of_training = {name: values.pop(name) for name in sorted(training_names() & values.keys())}
    of_task = {name: values.pop(name) for name in kind.OPTIONS if name in values}
    of_model = {name: values.pop(name) for name in _OF_MODEL if name in values}
    known = [*training_names(), *kind.OPTIONS, *_OF_MODEL]
    for name in values:
        near = difflib.get_close_matches(name, known, n=3, cutoff=_NEAR)
        if near:
            raise OptionError(f"{name} is no option of recipe {recipe.name}; accepted: {', '.join(near)}")
    reason = method.unavailable()
    if reason is not None:
        raise OptionError(f"method is {method.name!r}, which is not available: {reason}")
    _check_task(recipe, task, kind.TASKS)
    targets = _checked_targets(of_model.get("target_modules"))
    if not method.adapts_layers:
        if "target_modules" in choice.settings:
            raise OptionError(
                f"target_modules is {shown(targets)} with method {method.name!r}, which adapts no layers; accepted: to "
                "leave it out, or a method that adapts some"
            )
        targets = None  # the recipe's, for other methods
    return RunConfig(
        recipe=recipe.name,
        kind=recipe.kind,
        task=task,
        variant=resolved.variant,
        model=resolved.model,
        data=resolved.data,
        method=method.name,
        method_options=method.options(values),
        target_modules=targets,
        modules_to_save=_checked_modules(of_model.get("modules_to_save")),
        head_learning_rate=_checked_rate(of_model.get("head_learning_rate")),
        head_epochs=_checked_epochs(of_model.get("head_epochs", 0)),
        task_options=kind.checked_options(of_task),
        training=checked_training(of_training),
        seed=seed,
    )


def _check_task(recipe: Recipe, task: str, known: Mapping[str, Any]) -> None:
    if task not in known:
        near = difflib.get_close_matches(task, known, n=3) or list(known)
        raise OptionError(f"recipe {recipe.name}: task {task!r} is no {recipe.kind} task; accepted: {', '.join(near)}")


def _checked_targets(value: Any) -> list[str] | str | None:
    return value if value is None or isinstance(value, str) else _names(value, "target_modules")


def _checked_modules(value: Any) -> list[str] | None:
    return None if value is None else _names(value, "modules_to_save")


def _names(value: Any, name: str) -> list[str]:
    if not is_several(value) or not all(isinstance(each, str) for each in value):
        raise OptionError(f"{name} is {shown(value)}; accepted: a list of names of modules")
    return list(value)


def _checked_epochs(value: Any) -> int:
    try:
        return check_count(value, "head_epochs")
    except (TypeError, ValueError) as error:
        raise OptionError(str(error)) from error


def _checked_rate(value: Any) -> float | None:
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < float("inf"):
        raise OptionError(f"head_learning_rate is {shown(value)}; accepted: a positive finite number")
    return float(value)


def differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Say in which keys two configurations differ, and how.

    A key that one of them does not have is None there: a later version has more options, which leave things as they
    were at None.

    Examples
    --------
    >>> differences({"seed": 0, "training": {"bf16": True}}, {"seed": 0, "training": {"bf16": False}})
    ['training.bf16 was True and is False']
    """
    first, second = dict(flat(before)), dict(flat(now))
    missing = "not there"
    found = []
    for name in {**first, **second}:
        old, new = (shown(each[name]) if name in each else missing for each in (first, second))
        if old != new and {old, new} != {missing, shown(None)}:
            found.append(f"{name} was {old} and is {new}")
    return found


def flat(table: Mapping[str, Any], before: str = "") -> Iterator[tuple[str, Any]]:
    """Go through the keys of nested tables, written with dots.

    Examples
    --------
    >>> dict(flat({"seed": 0, "training": {"bf16": True}}))
    {'seed': 0, 'training.bf16': True}
    """
    for name, value in table.items():
        if isinstance(value, dict) and value:
            yield from flat(value, f"{before}{name}.")
        else:
            yield f"{before}{name}", value
