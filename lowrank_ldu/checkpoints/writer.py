"""Write safetensors files tensor by tensor.

Memory holds a part of one tensor and not the file.

The safetensors library writes a dictionary of tensors that are all in memory. What is copied here is never made a
tensor: bytes stay bytes, of whatever dtype.
"""

from __future__ import annotations

import functools
import hashlib
import json
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, BinaryIO

import torch

from lowrank_ldu.checkpoints.formats.safetensors_file import CODES, format_dtype
from lowrank_ldu.untrusted import LENGTH_BYTES

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from pathlib import Path

    from torch import Tensor

    from lowrank_ldu.checkpoints.formats.safetensors_file import SafetensorsReader

_ALIGNMENT = 8


@dataclass(frozen=True)
class Entry:
    """Hold the header and the bytes of a tensor.

    The tensor is to be written.

    Attributes
    ----------
    name : str
    dtype : str
        As the format names it: "F32", "BF16".
    shape : tuple of int
    size : int
        Bytes.
    chunks : callable
        Gives the bytes, part by part, when their turn comes.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    size: int
    chunks: Callable[[], Iterator[memoryview | bytes]]


def given(name: str, tensor: Tensor) -> Entry:
    """Return the entry of a tensor that is in memory."""
    return computed(name, tensor.dtype, tuple(tensor.shape), lambda: tensor)


def computed(name: str, dtype: torch.dtype, shape: tuple[int, ...], read: Callable[[], Tensor]) -> Entry:
    """Return the entry of a tensor that `read` computes later."""

    def chunks() -> Iterator[memoryview]:
        tensor = read().detach().cpu().contiguous()
        if tensor.dtype != dtype or tuple(tensor.shape) != shape:
            raise ValueError(f"tensor {name!r} is {tensor.dtype} {tuple(tensor.shape)}; accepted: {dtype} {shape}")
        if tensor.numel():
            yield tensor.flatten().view(torch.uint8).numpy().data

    return Entry(name, format_dtype(dtype), shape, dtype.itemsize * int(torch.Size(shape).numel()), chunks)


def stored(reader: SafetensorsReader, name: str) -> Entry:
    """Return the entry of a tensor that stands in a file."""
    info = reader.info(name)
    # A dtype without a name in torch keeps its name in the file.
    return Entry(
        name, CODES.get(info.dtype, info.dtype), info.shape, info.nbytes, functools.partial(reader.parts, name)
    )


def same_bytes(first: Entry, second: Entry) -> bool:
    """Return whether two entries have the same dtype, shape and bytes."""
    if (first.dtype, first.shape, first.size) != (second.dtype, second.shape, second.size):
        return False
    return _digest(first) == _digest(second)


def write_tensors(path: Path, entries: Iterable[Entry], metadata: dict[str, str] | None = None) -> None:
    """Write entries to a new file, whole or not at all.

    The file is on disk when this returns, and gone if it raises.

    Raises
    ------
    ValueError
        An entry gives a tensor of another dtype or shape than it says.
    """
    # Wide numbers first: every tensor then starts at a multiple of its own item's size, which readers that map the file
    # into memory count on.
    entries = sorted(entries, key=_item_bits, reverse=True)
    try:
        with path.open("xb") as file:
            file.write(_header(entries, metadata))
            for entry in entries:
                _write_tensor(file, entry)
            file.flush()
            os.fsync(file.fileno())
    except FileExistsError:
        raise
    except BaseException:
        path.unlink(missing_ok=True)
        raise


def _digest(entry: Entry) -> bytes:
    # The parts that two entries come in need not be of the same sizes.
    digest = hashlib.sha256()
    for chunk in entry.chunks():
        digest.update(chunk)
    return digest.digest()


def _item_bits(entry: Entry) -> float:
    numbers = int(torch.Size(entry.shape).numel())
    return 8 * entry.size / numbers if numbers else 0.0


def _header(entries: list[Entry], metadata: dict[str, str] | None) -> bytes:
    header: dict[str, object] = {"__metadata__": metadata} if metadata else {}
    start = 0
    for entry in entries:
        offsets = [start, start + entry.size]
        header[entry.name] = {"dtype": entry.dtype, "shape": list(entry.shape), "data_offsets": offsets}
        start += entry.size
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % _ALIGNMENT)
    return len(text).to_bytes(LENGTH_BYTES, "little") + text


def _write_tensor(file: BinaryIO, entry: Entry) -> None:
    written = 0
    for chunk in entry.chunks():
        written += file.write(chunk)
    if written != entry.size:
        raise ValueError(f"tensor {entry.name!r} gave {written} bytes; accepted: {entry.size}")
