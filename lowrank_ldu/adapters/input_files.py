"""Read the files of adapters with care.

They may be damaged, or made to do damage.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from torch import nn

from lowrank_ldu import untrusted
from lowrank_ldu.checkpoints.formats.safetensors_file import HEADER_ERRORS, read_header
from lowrank_ldu.checkpoints.safe_reading import reason_of
from lowrank_ldu.errors import AdapterError
from lowrank_ldu.nn.modules import check_model
from lowrank_ldu.validation import shown


def checked_path(path: object, name: str = "path") -> Path:
    """Return a caller's argument as a path.

    Raises
    ------
    TypeError
        It is none.
    AdapterError
        It has a character that no path can have, or is not in UTF-8.
    """
    text = os.fspath(path) if isinstance(path, str | os.PathLike) else None
    if not isinstance(text, str):
        raise TypeError(f"{name} is a {type(path).__name__}; accepted: a path, as a str or a pathlib.Path")
    if "\0" in text:
        raise AdapterError(f"{name} is {shown(text)}; accepted: a path, which has no null characters")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise AdapterError(f"{name} is {shown(text)}; accepted: a path in UTF-8, as the safetensors library") from error
    return Path(text)


def checked_model_and_path(model: object, path: object) -> Path:
    """Check a caller's model, and return the path beside it.

    It raises TypeError where they are none: they may be the wrong way round.
    """
    if not isinstance(model, nn.Module) and isinstance(path, nn.Module):
        raise TypeError(
            f"model is a {type(model).__name__} and path is a {type(path).__name__}; accepted: the model first, and "
            "the path after it"
        )
    check_model(model)
    return checked_path(path)


def check_regular(path: Path, accepted: str) -> None:
    """Refuse files that cannot be read to an end.

    Such are pipes, devices, and files that are holes for the most part.

    Raises
    ------
    AdapterError
        Or there is no such file.
    """
    try:
        untrusted.check_regular(path)
    except (OSError, ValueError) as error:
        raise AdapterError(f"{path}: {_reason(error)}; accepted: {accepted}") from error


def read_tensors(path: Path, accepted: str) -> bytes:
    """Return the bytes of a safetensors file.

    Parameters
    ----------
    path : Path
    accepted : str
        What the message says that is accepted.

    Raises
    ------
    AdapterError
        It cannot be read, or is no such file.
    """
    check_regular(path, accepted)
    try:
        # A header that does not fit the file is refused before anything is read.
        read_header(path)
    except HEADER_ERRORS as error:
        raise AdapterError(
            f"{path}: not a safetensors file; it is truncated or was changed ({reason_of(error)})"
        ) from error
    try:
        with untrusted.open_regular(path) as file:
            return file.read()
    except (OSError, MemoryError) as error:
        raise AdapterError(f"{path}: {_reason(error)}; accepted: {accepted}") from error


def read_json(path: Path, accepted: str) -> tuple[Any, bytes]:
    """Return the content of a JSON file of tensors or layers.

    With it come the file's bytes.

    Raises
    ------
    AdapterError
        It cannot be read, is too large, or is no JSON that says one thing.
    """
    check_regular(path, accepted)
    try:
        text = untrusted.read_text(path, untrusted.LISTING)
    except (OSError, MemoryError) as error:
        raise AdapterError(f"{path}: {_reason(error)}; accepted: {accepted}") from error
    try:
        return untrusted.strict_json(text, untrusted.LISTING), text
    except ValueError as error:
        raise AdapterError(f"{path}: not JSON that can be read ({reason_of(error)}); accepted: {accepted}") from error


def metadata_in(data: bytes) -> dict[str, str]:
    """Return the metadata of a safetensors file in memory.

    These are its texts beside the tensors. A damaged file has none.
    """
    end = untrusted.LENGTH_BYTES + int.from_bytes(data[: untrusted.LENGTH_BYTES], "little")
    try:
        metadata = untrusted.strict_json(data[untrusted.LENGTH_BYTES : end], untrusted.HEADER).get("__metadata__")
    except (AttributeError, ValueError):
        return {}
    known = isinstance(metadata, dict) and all(isinstance(value, str) for value in metadata.values())
    return metadata if known else {}


def _reason(error: BaseException) -> str:
    return getattr(error, "strerror", None) or reason_of(error)
