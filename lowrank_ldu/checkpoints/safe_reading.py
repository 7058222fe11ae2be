"""Read files that may be damaged.

JSON, ranges of bytes, and what libraries raise: all faults become one error.

Libraries of formats that few users have are imported where such a file is opened.
"""

from __future__ import annotations

import importlib
import re
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch

from lowrank_ldu import untrusted
from lowrank_ldu.checkpoints.remote.path import RemotePath
from lowrank_ldu.errors import CheckpointError, RemoteError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from lowrank_ldu.checkpoints.remote.path import Place


# Errors that libraries raise on damaged or hostile bytes, since they do not check them first.
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
    """Import the library that reads a file's format.

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


# The text of a Python object, <ast.BoolOp object at 0x7f1234567890>: its place in memory helps nobody.
_ADDRESS = re.compile(r" object at 0x[0-9a-f]+>")
# A message of a library may repeat a header of megabytes.
_LONGEST_REASON = 300


@contextmanager
def refused_as(path: Place, what: str, errors: tuple[type[Exception], ...]) -> Iterator[None]:
    """Turn errors of a library into the one error of readers.

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


def likely_cause(path: Place) -> str:
    """Guess why a file is not what its name promises."""
    try:
        head = _beginning(path).lstrip()
    except OSError as error:
        return f"it cannot be opened ({error.strerror})"
    if not head:
        return "it is empty"
    if head.startswith(b"version https://git-lfs"):
        return "it is a Git LFS pointer: fetch the file that it stands for with 'git lfs pull'"
    if head.startswith(b"<"):
        return "it begins like a web page: a download has probably gone wrong"
    return "it is truncated, damaged, or not of the format that its name says"


def _beginning(path: Place) -> bytes:
    if isinstance(path, RemotePath):
        return bytes(path.read_range(0, min(path.state().size, 64)))
    with path.open("rb") as file:
        return file.read(64)


def read_json(path: Place, what: str, limit: untrusted.Limit, *, lenient: bool = False) -> Any:
    """Return the value that a JSON file holds.

    Parameters
    ----------
    path : pathlib.Path
    what : str
        What the file is expected to be, for the message.
    limit, lenient
        As for `lowrank_ldu.untrusted.strict_json`.

    Raises
    ------
    CheckpointError
        It cannot be read, is too large, or is no JSON that says one thing.
    """
    with refused_as(path, what, (OSError, ValueError)):
        text = path.read_text(limit) if isinstance(path, RemotePath) else untrusted.read_text(path, limit)
        return untrusted.strict_json(text, limit, lenient=lenient)


def stored_range(path: Place, name: str, start: int, size: int) -> bytearray | memoryview:
    """Read the bytes of a tensor from their range.

    Raises
    ------
    CheckpointError
        The file ends before them, cannot be read, or has a hole where they are said to be.
    """
    with _range_of(path, name):
        if isinstance(path, RemotePath):
            return path.read_range(start, size)
        return untrusted.read_range(path, start, size)


def stored_parts(path: Place, name: str, start: int, size: int) -> Iterator[bytes]:
    """Yield the bytes of a tensor part by part.

    The errors are those of `stored_range`.
    """
    with _range_of(path, name):
        if isinstance(path, RemotePath):
            yield bytes(path.read_range(start, size))
        else:
            yield from untrusted.range_parts(path, start, size)


@contextmanager
def _range_of(path: Place, name: str) -> Iterator[None]:
    try:
        yield
    except RemoteError:
        raise
    except untrusted.ShortFileError as error:
        raise CheckpointError(
            f"{path}: tensor {name!r} {error}; the file has been changed since it was opened"
        ) from error
    except (OSError, ValueError, OverflowError, MemoryError) as error:
        raise CheckpointError(f"{path}: tensor {name!r} cannot be read ({reason_of(error)})") from error


def empty_tensor(path: Place, name: str, shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
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
    """Return an error's message as one short line, or its type."""
    said = _ADDRESS.sub(">", " ".join(str(error).split()))
    return (said if len(said) <= _LONGEST_REASON else f"{said[:_LONGEST_REASON]}...") or type(error).__name__
