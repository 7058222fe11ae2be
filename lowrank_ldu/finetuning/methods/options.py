"""Check the options of methods, and what goes wrong with them."""

from __future__ import annotations

import difflib
import math
import typing
import warnings
from contextlib import contextmanager
from dataclasses import MISSING, fields
from typing import TYPE_CHECKING, Any

from lowrank_ldu.errors import OptionError, UserError
from lowrank_ldu.finetuning.extra import require
from lowrank_ldu.validation import shown

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping


def check_names(method: str, given: Mapping[str, Any], accepted: Iterable[str], why: Mapping[str, str]) -> None:
    """Refuse options that a method does not take.

    Parameters
    ----------
    method : str
        Its name, for messages.
    given : mapping
    accepted : iterable of str
    why : mapping of str to str
        What is said of names that the method cannot use.

    Raises
    ------
    OptionError
        The message names what comes nearest.
    """
    names = sorted(accepted)
    for name in given:
        if name not in names:
            near = difflib.get_close_matches(str(name), names, n=3) or [each for each in names if str(name) in each]
            reason = f" ({why[name]})" if name in why else ""
            listed = ", ".join(near or names) if names else f"none, {method} has no options"
            raise OptionError(f"{shown(name)} is no option of method {method!r}{reason}; accepted: {listed}")


def field_defaults(config: type, without: Iterable[str]) -> dict[str, Any]:
    """Return the defaults of a configuration's fields, as JSON values."""
    left_out = set(without)
    return {
        each.name: each.default_factory() if each.default_factory is not MISSING else each.default
        for each in fields(config)
        if each.name not in left_out
    }


def converted(config: type, options: Mapping[str, Any]) -> dict[str, Any]:
    """Return options in the types that a configuration's fields have.

    Raises
    ------
    OptionError
        A value is of another type; the message names the option, the value and the type.
    """
    hints = typing.get_type_hints(config)
    return {name: _converted(name, value, hints[name]) for name, value in options.items()}


def _converted(name: str, value: Any, hint: Any) -> Any:
    msgspec = require("msgspec")
    try:
        return msgspec.convert(value, hint)
    except msgspec.ValidationError:
        raise OptionError(f"{name} is {shown(value)}; accepted: {_described(hint)}") from None


def _described(hint: Any) -> str:
    """Return a type as messages show it.

    Examples
    --------
    >>> _described(typing.Optional[int]), _described(typing.Literal["none", "all"])
    ('int or None', "'none' or 'all'")
    """
    if hint is type(None):
        return "None"
    arguments = typing.get_args(hint)
    if typing.get_origin(hint) is typing.Literal:
        return " or ".join(map(repr, arguments))
    if arguments and typing.get_origin(hint) not in {list, dict, tuple, set}:
        return " or ".join(map(_described, arguments))
    return getattr(hint, "__name__", str(hint)) if not arguments else str(hint)


@contextmanager
def as_option_errors(what: str, *, quiet: bool = False) -> Iterator[None]:
    """Turn what a library says of options into an `OptionError`.

    Parameters
    ----------
    what : str
        What the message begins with.
    quiet : bool
        Whether warnings are left to a second call.
    """
    try:
        with warnings.catch_warnings():
            if quiet:
                warnings.simplefilter("ignore")
            yield
    except UserError:
        raise
    except (TypeError, ValueError, NotImplementedError) as error:
        raise OptionError(f"{what}: {' '.join(str(error).split())}") from error


def check_ranges(options: Mapping[str, Any], least: Mapping[str, int], choices: Mapping[str, tuple[Any, ...]]) -> None:
    """Refuse integers that are too small, dropouts that are none, and other values than choices.

    Parameters
    ----------
    options : mapping
    least : mapping of str to int
    choices : mapping of str to tuple

    Raises
    ------
    OptionError
    """
    for name, value in options.items():
        if name in least and value is not None and value < least[name]:
            raise OptionError(f"{name} is {shown(value)}; accepted: an integer from {least[name]} on")
        # True == 1: a value counts with its type.
        if name in choices and (type(value), value) not in [(type(each), each) for each in choices[name]]:
            raise OptionError(f"{name} is {shown(value)}; accepted: {', '.join(map(repr, choices[name]))}")
        if name.endswith("dropout"):
            check_dropout(value, name)


def check_finite(options: Mapping[str, Any]) -> None:
    """Refuse numbers that are NaN or infinite."""
    for name, value in options.items():
        if isinstance(value, float) and not math.isfinite(value):
            raise OptionError(f"{name} is {value}; accepted: a finite number")


def check_dropout(value: Any, name: str) -> None:
    """Refuse what is no probability below 1."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < 1:
        raise OptionError(f"{name} is {shown(value)}; accepted: a number from 0 to below 1")
