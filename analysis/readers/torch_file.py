"""A file that ``torch.save`` wrote: ``.pt``, ``.pth`` or ``.bin``."""

from __future__ import annotations

import pickle
import re
import struct
import warnings
import zipfile
from typing import TYPE_CHECKING

import torch

from lowrank_ldu.analysis.readers.base import CheckpointError, CheckpointReader, TensorInfo, likely_cause

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

# Far deeper than any training script nests, far shallower than Python's recursion limit.
_MAX_DEPTH = 32

# Of an archive with compressed members, which are read at once: weights do not compress so well, and what does may fill
# the memory. A few megabytes are let pass, since small tensors of zeros do.
_MOST_INFLATED = 20
_FEW_BYTES = 2**24

# torch runs the pickle without checking it first, so a damaged one fails wherever its bytes lead.
_LOAD_ERRORS = (
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
    pickle.UnpicklingError,
    struct.error,
    zipfile.BadZipFile,
)


class TorchReader(CheckpointReader):
    """Reader of one file that ``torch.save`` wrote, which never runs code from the file.

    The values stay on disk until they are used, except in the two cases that torch cannot map: the format from before
    torch 1.6 and an archive with compressed members, which are read whole. Nested dicts, lists and tuples are
    flattened: ``{"model": {"weight": w}}`` gives ``"model.weight"``. A bare tensor is called ``"tensor"``.

    Parameters
    ----------
    path : pathlib.Path
        The file.

    Raises
    ------
    CheckpointError
        If the file is missing or damaged, if it holds no dict, list, tuple or tensor, or if reading it would mean
        running code.
    """

    def __init__(self, path: Path) -> None:
        content = _load(path)
        self._values: dict[str, torch.Tensor] = {}
        ignored = {}
        if isinstance(content, torch.Tensor):
            content = {"tensor": content}
        if not isinstance(content, dict | list | tuple):
            raise CheckpointError(
                f"{path}: holds one object of type {type(content).__name__}; accepted: a dict, list or tuple of "
                "tensors, or a tensor"
            )
        for name, value in _leaves(content, path, (), set()):
            if isinstance(value, torch.Tensor) and _is_plain(value):
                if name in self._values:
                    raise CheckpointError(f"{path}: nested names joined with dots give two tensors called {name!r}")
                self._values[name] = value.detach()
            else:
                ignored[name] = _describe(value)
        super().__init__(
            path,
            (
                TensorInfo(name, tuple(value.shape), str(value.dtype).removeprefix("torch."), str(path), value.nbytes)
                for name, value in self._values.items()
            ),
            ignored,
        )

    def _read(self, info: TensorInfo) -> torch.Tensor:
        return self._values[info.name]

    def close(self) -> None:
        """Let go of the values, and so of the file that they are mapped from."""
        super().close()
        self._values.clear()


def _load(path: Path) -> object:
    """Return what was saved, with every global that is not a plain tensor's refused."""
    try:
        mmap = _can_be_mapped(path)
        with warnings.catch_warnings():
            # torch warns of pickles that it may not understand; whether it did is what is returned or raised.
            warnings.simplefilter("ignore", UserWarning)
            content: object = torch.load(path, map_location="cpu", weights_only=True, mmap=mmap)
    except CheckpointError:
        raise
    except _LOAD_ERRORS as error:
        # The rest of torch's message advises to load the file unsafely, which is not for us to pass on.
        reason = re.split(r"\.\s|\n", str(error), maxsplit=1)[0] or type(error).__name__
        if not isinstance(error, pickle.UnpicklingError):
            raise CheckpointError(f"{path}: not a readable torch file ({reason}); {likely_cause(path)}") from error
        wanted = re.search(r"GLOBAL (\S+)", str(error))
        if wanted is None:
            raise CheckpointError(
                f"{path}: its pickle is damaged or was not written by torch.save; pickles can run code, so only plain "
                "tensors saved with torch.save are accepted: save the weights as safetensors instead"
            ) from error
        raise CheckpointError(
            f"{path}: wants to run code when it is read (the global {wanted[1]!r}) and was refused; only plain tensors "
            "are accepted: save the weights as safetensors instead"
        ) from error
    return content


def _can_be_mapped(path: Path) -> bool:
    """Whether torch finds the values of this file by their offset: a zip archive with no compressed member."""
    with path.open("rb") as file:
        if file.read(4) != b"PK\x03\x04":
            return False
    with zipfile.ZipFile(path) as archive:
        members = archive.infolist()
    if any(member.filename.endswith("/constants.pkl") for member in members):
        raise CheckpointError(
            f"{path}: is a TorchScript archive, which holds code; accepted: plain tensors, such as the model's "
            "state_dict() saved as safetensors"
        )
    size, inflated = path.stat().st_size, sum(member.file_size for member in members)
    if inflated > _MOST_INFLATED * size + _FEW_BYTES:
        raise CheckpointError(
            f"{path}: said to hold {inflated} bytes in a file of {size}; accepted: up to {_MOST_INFLATED} times that"
        )
    # torch maps a compressed member as though it were stored, and so would return its compressed bytes as values.
    return all(member.compress_type == zipfile.ZIP_STORED for member in members)


def _leaves(value: object, path: Path, keys: tuple[str, ...], seen: set[int]) -> Iterator[tuple[str, object]]:
    """Yield what is not a container, each with its dotted name, in the order in which it was saved."""
    if not isinstance(value, dict | list | tuple):
        yield ".".join(keys), value
        return
    if len(keys) > _MAX_DEPTH:
        raise CheckpointError(f"{path}: containers are nested deeper than {_MAX_DEPTH} levels, at {'.'.join(keys)!r}")
    if id(value) in seen:
        # A container may hold itself, or share one so often that a walk over all names would never end.
        yield ".".join(keys), value
        return
    seen.add(id(value))
    for key, item in value.items() if isinstance(value, dict) else enumerate(value):
        yield from _leaves(item, path, (*keys, str(key)), seen)


def _is_plain(value: torch.Tensor) -> bool:
    return value.layout is torch.strided and value.device.type == "cpu" and not (value.is_quantized or value.is_nested)


def _describe(value: object) -> str:
    if isinstance(value, torch.Tensor):
        return f"{value.dtype} tensor, {value.layout}, on {value.device}"
    if isinstance(value, dict | list | tuple):
        return f"{type(value).__name__} that is already listed under another name"
    return type(value).__name__
