"""Read the files of adapters and bases, which may be damaged, or made to do damage."""

from __future__ import annotations

import json
import os
import stat
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import nn

from lowrank_ldu.adapters.errors import AdapterError
from lowrank_ldu.nn.host import check_model
from lowrank_ldu.validation import shown

# The index of a million tensors is not half as large.
_LARGEST_JSON = 2**28
# Larger files that take less than half of their size on disk were not written whole.
_SPARSE_FROM = 2**30


def checked_path(path: object, name: str = "path") -> Path:
    """Return what a caller gave as a path.

    Raises
    ------
    TypeError
        It is none.
    AdapterError
        It has a character that no path can have.
    """
    text = os.fspath(path) if isinstance(path, str | os.PathLike) else None
    if not isinstance(text, str):
        raise TypeError(f"{name} is a {type(path).__name__}; accepted: a path, as a str or a pathlib.Path")
    if "\0" in text:
        raise AdapterError(f"{name} is {shown(text)}; accepted: a path, which has no null characters")
    return Path(text)


def checked_model_and_path(model: object, path: object) -> Path:
    """Return what a caller gave as a path beside a model, or raise TypeError: they may be the wrong way round."""
    if not isinstance(model, nn.Module) and isinstance(path, nn.Module):
        raise TypeError(
            f"model is a {type(model).__name__} and path is a {type(path).__name__}; accepted: the model first, and "
            "the path after it"
        )
    check_model(model)
    return checked_path(path)


def check_regular(path: Path, accepted: str) -> None:
    """Refuse what cannot be read to an end: pipes, devices, and files that are holes for the most part.

    Raises
    ------
    AdapterError
        Or there is no such file.
    """
    try:
        state = path.stat()
    except (OSError, ValueError) as error:
        raise AdapterError(f"{path}: {_reason(error)}; accepted: {accepted}") from error
    if not stat.S_ISREG(state.st_mode):
        raise AdapterError(f"{path}: is no regular file; accepted: {accepted}")
    blocks = getattr(state, "st_blocks", None)
    if state.st_size > _SPARSE_FROM and blocks is not None and 512 * blocks < state.st_size // 2:
        raise AdapterError(f"{path}: is {state.st_size} bytes long and mostly holes; accepted: a file that is whole")


def read_file(path: Path, accepted: str) -> bytes:
    """Return the bytes of a safetensors or a JSON file, of which the latter may have 256 MiB.

    Parameters
    ----------
    path : Path
    accepted : str
        What the message says that is accepted.

    Raises
    ------
    AdapterError
        It cannot be read, or is too large.
    """
    check_regular(path, accepted)
    tensors = path.name.endswith(".safetensors")
    if tensors:
        check_safetensors(path)
    try:
        with open(path, "rb", opener=_without_waiting) as file:
            content = file.read() if tensors else file.read(_LARGEST_JSON + 1)
    except (OSError, MemoryError) as error:
        raise AdapterError(f"{path}: {_reason(error)}; accepted: {accepted}") from error
    if not tensors and len(content) > _LARGEST_JSON:
        raise AdapterError(f"{path}: is larger than {_LARGEST_JSON} bytes; accepted: a configuration")
    return content


def check_safetensors(path: Path) -> None:
    """Refuse a file whose header does not fit its size, before anything is read."""
    try:
        with safe_open(path, framework="pt"):
            pass
    except (OSError, SafetensorError, ValueError) as error:
        raise AdapterError(
            f"{path}: not a safetensors file; it is truncated or was changed ({one_line(error)})"
        ) from error


def parsed_json(path: Path, text: bytes) -> Any:
    """Return what strict JSON says; numbers that are not finite are none.

    Raises
    ------
    AdapterError
        It is no JSON, or too deep.
    """

    def refuse(constant: str) -> None:
        raise ValueError(f"{constant} is no number of JSON's")

    try:
        return json.loads(text, parse_constant=refuse)
    except (ValueError, RecursionError) as error:
        raise AdapterError(f"{path}: not JSON ({one_line(error)})") from error


def metadata_in(data: bytes) -> dict[str, str]:
    """Return the texts that a safetensors file in memory has beside its tensors; none if it is damaged."""
    length = int.from_bytes(data[:8], "little")
    try:
        metadata = json.loads(data[8 : 8 + length]).get("__metadata__")
    except (AttributeError, ValueError, RecursionError):
        return {}
    known = isinstance(metadata, dict) and all(isinstance(value, str) for value in metadata.values())
    return metadata if known else {}


def one_line(error: BaseException) -> str:
    """Return an error's message on one line, and its kind where it has none."""
    return " ".join(str(error).split()) or type(error).__name__


def _without_waiting(path: str, flags: int) -> int:
    # A pipe that has taken the file's place since it was looked at.
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0))


def _reason(error: BaseException) -> str:
    return getattr(error, "strerror", None) or one_line(error)
