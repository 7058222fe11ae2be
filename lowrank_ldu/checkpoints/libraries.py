"""Libraries that read formats: imported where a file is opened, if few users have such files; and their errors."""

from __future__ import annotations

import importlib
import re
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch

from lowrank_ldu.checkpoints.reader import likely_cause
from lowrank_ldu.errors import CheckpointError
from lowrank_ldu.untrusted import ShortFileError, read_range

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


# What libraries raise on bytes that are damaged or hostile: they follow them wherever they lead.
LIBRARY_ERRORS = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    EOFError,
    LookupError,
    MemoryError,
    OSError,
    RuntimeError,
    TypeError,
    ValueError,
)


def library_for(path: Path, module: str) -> Any:
    """Return a module that reads the format of a file.

    Raises
    ------
    CheckpointError
        It is not installed; the message names the extra that brings it.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        package = module.partition(".")[0]
        raise CheckpointError(
            f"{path}: reading {path.suffix} files needs {package}: pip install 'lowrank-ldu[formats]'"
        ) from error


# Of an object of Python, <ast.BoolOp object at 0x7f1234567890>: its place in memory helps nobody.
_ADDRESS = re.compile(r" object at 0x[0-9a-f]+>")
# A message of a library may repeat a header of megabytes.
_LONGEST_REASON = 300


@contextmanager
def refused_as(path: Path, what: str, errors: tuple[type[Exception], ...]) -> Iterator[None]:
    """Turn what a library raises on a file that is none of its format into the one error that readers raise.

    Raises
    ------
    CheckpointError
        One of the errors was raised in the context; the message says what the file is not, and what it may be.
    """
    try:
        yield
    except CheckpointError:
        raise
    except errors as error:
        reason = reason_of(error)
        raise CheckpointError(f"{path}: not a readable {what} ({reason}); {likely_cause(path)}") from error


def stored_range(path: Path, name: str, start: int, size: int) -> bytearray:
    """Return the bytes of a tensor, read from the range of a file that they are in.

    Raises
    ------
    CheckpointError
        The file ends before them, cannot be read, or has a hole where they are said to be.
    """
    try:
        return read_range(path, start, size)
    except ShortFileError as error:
        raise CheckpointError(
            f"{path}: tensor {name!r} {error}; the file has been changed since it was opened"
        ) from error
    except (OSError, ValueError, OverflowError, MemoryError) as error:
        raise CheckpointError(f"{path}: tensor {name!r} cannot be read ({reason_of(error)})") from error


def empty_tensor(path: Path, name: str, shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
    """Return a tensor without values.

    Raises
    ------
    CheckpointError
        Its other sides are so long that torch cannot count with them.
    """
    try:
        return torch.empty(shape, dtype=dtype)
    except (RuntimeError, TypeError) as error:
        raise CheckpointError(f"{path}: tensor {name!r} cannot be read ({reason_of(error)})") from error


def reason_of(error: BaseException) -> str:
    """Return what an error says, in one line that is not long; its type if it says nothing."""
    said = _ADDRESS.sub(">", " ".join(str(error).split()))
    return (said if len(said) <= _LONGEST_REASON else f"{said[:_LONGEST_REASON]}...") or type(error).__name__
