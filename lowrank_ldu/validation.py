"""Check arguments where callers hand them in.

Everything behind these checks can rely on finite floating matrices and a rank in range.
"""

from __future__ import annotations

import difflib
import functools
import inspect
import math
import numbers
import operator
import os
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from pathlib import Path
from typing import Any, TypeVar, cast

import numpy as np

from lowrank_ldu.backend import Array, ArrayType, Backend, backend_of

_Function = TypeVar("_Function", bound=Callable[..., Any])
_Record = TypeVar("_Record")

DTYPES = ("float16", "bfloat16", "float32", "float64")

# Of torch's generators, and of the files of adapters.
LARGEST_SEED = 2**63 - 1
# Characters of a value in a message.
_LONGEST_SHOWN = 100


def dtype_name(array: Array) -> str:
    """Return the dtype's name, the same for every library.

    "float32" for torch.float32 too.
    """
    return str(array.dtype).removeprefix("torch.")


def check_matrix(matrix: Array, name: str = "W") -> tuple[Array, Backend]:
    """Return a matrix in its computing dtype, with its backend.

    Parameters
    ----------
    matrix : array, shape (..., m, n)
        float16, bfloat16 (both are computed in float32), float32 or float64.
    name : str
        What the caller calls it, for the messages.

    Raises
    ------
    TypeError
        Not an array of a supported library, of another dtype, or traced by JAX.
    ValueError
        Fewer than two dimensions, no entries, no data (meta device), or entries that are NaN or infinite.
    """
    backend = backend_of(matrix, name)
    if isinstance(matrix, np.ma.MaskedArray):
        raise TypeError(f"{name} is a masked array, whose mask would be ignored; accepted: a plain array")
    if str(getattr(matrix, "layout", "torch.strided")) != "torch.strided":
        raise TypeError(f"{name} has layout {matrix.layout}; accepted: a dense tensor (torch.strided)")
    dtype = dtype_name(matrix)
    if dtype not in DTYPES:
        raise TypeError(f"{name} has dtype {dtype}; accepted: {', '.join(DTYPES)}")
    shape = tuple(matrix.shape)
    if len(shape) < 2:
        raise ValueError(f"{name} has shape {shape}; accepted: a matrix (m, n) or a stack of them (..., m, n)")
    if 0 in shape:
        raise ValueError(f"{name} has shape {shape}, which holds no entries; accepted: at least 1 in every dimension")
    if getattr(getattr(matrix, "device", None), "type", None) == "meta":
        raise ValueError(f"{name} is on the meta device and has no data; accepted: a materialized tensor")
    matrix = backend.detach(matrix)
    # torch's compiler goes on without what it cannot trace.
    if backend.name == "jax" and backend.is_traced(matrix):
        raise TypeError(
            f"{name} is traced by JAX, as in jax.jit and jax.vmap, and has no numbers yet; accepted: a concrete array, "
            "outside of them"
        )
    if dtype in {"float16", "bfloat16"}:
        matrix = backend.xp.astype(matrix, backend.xp.float32)
    check_finite(matrix, backend, name)
    return matrix, backend


def check_like(matrix: Array, reference: Array, name: str = "W") -> tuple[Array, Backend]:
    """Check a matrix of the same library as `reference`.

    Returns what `check_matrix` does.

    Raises
    ------
    TypeError, ValueError
        As `check_matrix`; TypeError also for an array of another library.
    """
    matrix, backend = check_matrix(matrix, name)
    if backend.name != backend_of(reference).name:
        raise TypeError(f"{name} is a {type_name(matrix)}; accepted: a {type_name(reference)}, as the factors")
    return matrix, backend


def type_name(array: Array) -> str:
    """Return the type of an array, for messages."""
    return f"{type(array).__module__}.{type(array).__qualname__}"


def is_finite(array: Array, backend: Backend) -> bool:
    """Say whether no entry is NaN or infinite.

    A sum is finite only if every term is, and costs one pass without a temporary (at 4096 x 4096 a tenth of isfinite
    on PyTorch). A sum that is not finite may only have overflowed, so then every entry is looked at.
    """
    xp = backend.xp
    with np.errstate(over="ignore", invalid="ignore"):
        total = float(xp.sum(array))
    return total - total == 0.0 or bool(xp.all(xp.isfinite(array)))


def check_finite(array: Array, backend: Backend, name: str) -> None:
    """Refuse an array with entries that are not finite.

    ValueError says how many those are, and where the first one is.
    """
    if is_finite(array, backend):
        return
    xp = backend.xp
    bad = xp.astype(xp.logical_not(xp.isfinite(array)), xp.int32)
    count = int(xp.sum(bad))
    flat = int(xp.argmax(xp.reshape(bad, (-1,))))
    position: list[int] = []
    for size in reversed(array.shape):
        flat, offset = divmod(flat, int(size))
        position.insert(0, offset)
    value = float(array[tuple(position)])
    raise ValueError(
        f"{name} holds {count} entries that are not finite, the first at {tuple(position)}: {value}; "
        "accepted: finite entries only"
    )


def check_representable(array: ArrayType, backend: Backend, name: str, accepted: str) -> ArrayType:
    """Refuse a result that has left its dtype's range.

    Otherwise the array is returned.
    """
    if not backend.is_traced(array) and not is_finite(array, backend):
        largest = float(backend.xp.finfo(array.dtype).max)
        raise ValueError(
            f"{name} has entries beyond {largest:.3g}, the largest number of {dtype_name(array)}; accepted: {accepted}"
        )
    return array


def shown(value: object) -> str:
    """Return a value as messages show it: one short line.

    Examples
    --------
    >>> shown("8"), shown(np.eye(2))
    ("'8'", 'array([[1., 0.], [0., 1.]])')
    """
    text = " ".join(repr(value).split())
    return text if len(text) <= _LONGEST_SHOWN else f"{text[:_LONGEST_SHOWN]}..."


def check_rank(rank: object, largest: int, name: str = "rank", *, optional: bool = True) -> int:
    """Return `rank` as an int from 1 to `largest`.

    None means `largest`, where it is optional.
    """
    if rank is None and optional:
        return largest
    accepted = f"an integer from 1 to {largest}"
    value = _integer(rank, name, f"{accepted}, or None for {largest}" if optional else accepted)
    if not 1 <= value <= largest:
        raise ValueError(f"{name} is {value}; accepted: {accepted}")
    return value


def check_count(value: object, name: str, least: int = 0, largest: int | None = None) -> int:
    """Return `value` as an int from `least` to `largest`.

    The latter may be open.
    """
    accepted = f"an integer from {least} {'on' if largest is None else f'to {largest}'}"
    count = _integer(value, name, accepted)
    if count < least or (largest is not None and count > largest):
        raise ValueError(f"{name} is {count}; accepted: {accepted}")
    return count


def _integer(value: object, name: str, accepted: str) -> int:
    # True is an integer of Python's, and hardly meant as one.
    if not isinstance(value, bool):
        try:
            return operator.index(value)  # type: ignore[arg-type]
        except (TypeError, ValueError):  # ValueError: of a tensor that requires a gradient, or on the meta device
            pass
    raise TypeError(f"{name} is {shown(value)}; accepted: {accepted}")


def check_choice(value: object, name: str, accepted: Iterable[str]) -> None:
    """Refuse a value that is no accepted string."""
    choices = tuple(accepted)
    if not isinstance(value, str) or value not in choices:
        raise ValueError(f"{name} is {shown(value)}; accepted: {', '.join(map(repr, choices))}")


def check_flag(value: object, name: str) -> bool:
    """Return `value` as a bool, and refuse other types.

    "no" and 1.5 would count as True.
    """
    if not isinstance(value, bool | np.bool_):
        raise TypeError(f"{name} is {shown(value)}; accepted: True or False")
    return bool(value)


def check_path(value: object, name: str) -> Path:
    """Return a path, and refuse what is none.

    TypeError names the argument and its type.
    """
    if not isinstance(value, str | os.PathLike):
        raise TypeError(f"{name} is a {type(value).__name__}; accepted: a path, as a str or a pathlib.Path")
    return Path(value)


def check_instance(value: object, name: str, accepted: type) -> None:
    """Refuse what is not of a class.

    Raises
    ------
    TypeError
        The message names the argument, its type and the class.
    """
    if not isinstance(value, accepted):
        raise TypeError(f"{name} is of type {type(value).__name__}; accepted: {accepted.__name__}")


def is_several(value: object) -> bool:
    """Say whether a value is a sequence or a set.

    A string is none here: it would be taken letter by letter.
    """
    return isinstance(value, Sequence | AbstractSet) and not isinstance(value, str | bytes)


def check_names(value: Any, name: str, accepted: str) -> list[str]:
    """Return a sequence or set of strings as a list."""
    if not is_several(value) or not all(isinstance(each, str) for each in value):
        raise TypeError(f"{name} is {shown(value)}; accepted: {accepted}")
    return sorted(value) if isinstance(value, AbstractSet) else list(value)


def check_pattern(pattern: str, name: str, accepted: str) -> re.Pattern[str]:
    """Return a regular expression, compiled."""
    try:
        return re.compile(pattern)
    except (re.error, OverflowError, RecursionError) as error:
        reason = f"not a regular expression ({error})"
        raise ValueError(f"{name} is {shown(pattern)}, {reason}; accepted: {accepted}") from error


def check_positive(value: object, name: str) -> float:
    """Return `value` as a float > 0 and finite."""
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise TypeError(f"{name} is {shown(value)}; accepted: a positive finite number")
    try:
        number = float(value)
    except OverflowError:
        number = math.inf
    if not (math.isfinite(number) and number > 0):
        raise ValueError(f"{name} is {shown(value)}; accepted: a positive finite number")
    return number


def explain_keywords(hints: Mapping[str, str]) -> Callable[[_Function], _Function]:
    """Have a function explain keywords of other libraries.

    Parameters
    ----------
    hints : mapping of str to str
        What the message says of each of those keywords.

    Returns
    -------
    callable
        A decorator. Keywords that are neither the function's nor hinted at get the nearest names instead.

    Examples
    --------
    >>> @explain_keywords({"r": "it is rank here"})
    ... def inject(*, rank):
    ...     return rank
    >>> inject(r=8)
    Traceback (most recent call last):
        ...
    TypeError: inject() got an unexpected keyword argument 'r': it is rank here
    """

    def decorate(function: _Function) -> _Function:
        accepted = [name for name in inspect.signature(function).parameters if name != "self"]

        @functools.wraps(function)
        def call(*args: Any, **kwargs: Any) -> Any:
            for name in kwargs:
                if name not in accepted:
                    near = difflib.get_close_matches(name, accepted, n=3) or accepted
                    hint = hints.get(name, f"accepted: {', '.join(near)}")
                    what = function.__qualname__.removesuffix(".__init__")
                    raise TypeError(f"{what}() got an unexpected keyword argument {name!r}: {hint}")
            return function(*args, **kwargs)

        return cast("_Function", call)

    return decorate


def given_fields(kind: type[_Record], options: _Record | None, fields: Mapping[str, Any]) -> _Record:
    """Return the options of a call, given whole or by keyword.

    Parameters
    ----------
    kind : type
        A dataclass of options.
    options : object, optional
        Of that kind.
    fields : mapping of str to object
        Its fields, in place of `options`.

    Raises
    ------
    TypeError
        `options` is of another kind, or fields are given beside it; or what `kind` raises.
    """
    if options is None:
        return kind(**fields)
    if not isinstance(options, kind):
        raise TypeError(f"options is {shown(options)}; accepted: {kind.__name__}, or its fields by keyword")
    if fields:
        raise TypeError(f"options is given beside {', '.join(fields)}; accepted: options, or its fields by keyword")
    return options


def shows_fields(kind: type) -> Callable[[_Function], _Function]:
    """Show the fields of a dataclass in a function's signature.

    Parameters
    ----------
    kind : type
        Of the options that the function takes as `**fields`, which `help` and completion would show as that.

    Returns
    -------
    callable
        A decorator, which returns the same function.

    Examples
    --------
    >>> import dataclasses
    >>> @dataclasses.dataclass
    ... class Options:
    ...     rank: int = 8
    >>> @shows_fields(Options)
    ... def make(layer, **fields): ...
    >>> inspect.signature(make)
    <Signature (layer, *, rank: 'int' = 8)>
    """

    def decorate(function: _Function) -> _Function:
        signature = inspect.signature(function)
        own = [each for each in signature.parameters.values() if each.kind is not inspect.Parameter.VAR_KEYWORD]
        taken = {each.name for each in own}
        shared = [
            each.replace(kind=inspect.Parameter.KEYWORD_ONLY)
            for name, each in inspect.signature(kind).parameters.items()
            if name not in taken
        ]
        function.__signature__ = signature.replace(parameters=[*own, *shared])  # type: ignore[attr-defined]
        return function

    return decorate


# Other names of the arguments of factorizations.
RANK_KEYWORDS = {"r": "it is rank here", "k": "it is rank here"}
# What users of LoRA bring, and why there is no such thing here.
LORA_KEYWORDS = {
    "r": "it is rank here",
    "lora_r": "it is rank here",
    "lora_alpha": "it is alpha here; sigma starts at alpha / rank",
    "lora_dropout": "there is no dropout, since no activations of its own are trained; accepted: leave it out",
    "use_rslora": "there is no such variant; alpha sets the scale",
    "use_dora": "there is no such variant, since there are no two matrices to part; accepted: leave it out",
    "lora_bias": "there is no bias of an update; accepted: leave it out",
    "init_lora_weights": "the start is init here; basis='svd' is what is nearest to PiSSA",
    "target_parameters": "targets are modules here; accepted: names of modules",
}
