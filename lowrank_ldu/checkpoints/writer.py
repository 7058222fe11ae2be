"""Read and write safetensors files tensor by tensor, so that memory holds a part of one and not the file.

The safetensors library writes a dictionary of tensors that are all in memory. What is copied here is never made a
tensor: bytes stay bytes, of whatever dtype.
"""

from __future__ import annotations

import functools
import hashlib
import json
import os
import warnings
from dataclasses import dataclass
from typing import TYPE_CHECKING, BinaryIO

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from lowrank_ldu.adapters.input_files import one_line
from lowrank_ldu.errors import AdapterError
from lowrank_ldu.untrusted import ShortFileError, range_parts, safetensors_header

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from pathlib import Path

    from torch import Tensor

# https://huggingface.co/docs/safetensors: the header's length, the header, the tensors' bytes without gaps.
# Of a tensor without values, which the library takes.
_LONGEST_SIDE = 2**63 - 1
_LENGTH_BYTES = 8
_ALIGNMENT = 8


@dataclass(frozen=True)
class Entry:
    """A tensor that is written or stands in a file: what the header says of it, and its bytes.

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
    """Return the entry of a tensor that `read` gives when its turn comes."""

    def chunks() -> Iterator[memoryview]:
        tensor = read().detach().cpu().contiguous()
        if tensor.dtype != dtype or tuple(tensor.shape) != shape:
            raise ValueError(f"tensor {name!r} is {tensor.dtype} {tuple(tensor.shape)}; accepted: {dtype} {shape}")
        if tensor.numel():
            yield tensor.flatten().view(torch.uint8).numpy().data

    return Entry(name, dtype_code(dtype), shape, dtype.itemsize * int(torch.Size(shape).numel()), chunks)


def dtype_code(dtype: torch.dtype) -> str:
    """Return the format's name of a dtype.

    Raises
    ------
    AdapterError
        The format has none.

    Examples
    --------
    >>> dtype_code(torch.bfloat16)
    'BF16'
    """
    if dtype not in _codes():
        raise AdapterError(f"a tensor is {dtype}; accepted: dtypes that safetensors has a name for")
    return _codes()[dtype]


def torch_dtype(code: str) -> torch.dtype:
    """Return the dtype of a name of the format's.

    Raises
    ------
    AdapterError
        torch has no such dtype.

    Examples
    --------
    >>> torch_dtype("BF16")
    torch.bfloat16
    """
    for dtype, name in _codes().items():
        if name == code:
            return dtype
    raise AdapterError(f"a tensor is stored as {code!r}; accepted: dtypes that torch has")


@functools.cache
def _codes() -> dict[torch.dtype, str]:
    """Return the format's name of every dtype, by asking the library that knows them."""
    codes = {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # torch's, of dtypes that are experimental or old
        for dtype in {value for value in vars(torch).values() if isinstance(value, torch.dtype)}:
            try:
                text = save({"tensor": torch.empty(0, dtype=dtype)})[_LENGTH_BYTES:].decode()
            except (KeyError, ValueError, RuntimeError, SafetensorError):
                continue
            codes[dtype] = str(json.JSONDecoder().raw_decode(text)[0]["tensor"]["dtype"])
    return codes


def entries_of(path: Path) -> dict[str, Entry]:
    """Return the entries of a safetensors file by their names, without reading its tensors.

    Raises
    ------
    AdapterError
        It is no such file.
    """
    try:
        # The library refuses what is damaged: gaps, overlaps, a header that is too long.
        with safe_open(path, framework="pt"):
            header, start = safetensors_header(path)
    except (OSError, SafetensorError, ValueError) as error:
        raise AdapterError(f"{path}: not a safetensors file ({one_line(error)})") from error
    entries = {}
    for name, said in header.items():
        first, last = said["data_offsets"]
        if any(size > _LONGEST_SIDE for size in said["shape"]):
            shape = tuple(said["shape"])
            raise AdapterError(f"{path}: tensor {name!r} has shape {shape}; accepted: at most {_LONGEST_SIDE} a side")
        reader = functools.partial(_read, path, start + first, last - first)
        entries[name] = Entry(name, said["dtype"], tuple(said["shape"]), last - first, reader)
    return entries


def metadata_of(path: Path) -> dict[str, str]:
    """Return what a safetensors file says of itself beside its tensors."""
    with safe_open(path, framework="pt") as file:
        return dict(file.metadata() or {})


def read_tensor(path: Path, name: str) -> Tensor:
    """Read one tensor of a safetensors file."""
    with safe_open(path, framework="pt") as file:
        tensor: Tensor = file.get_tensor(name)
        return tensor


def read_entry(entry: Entry) -> Tensor:
    """Return an entry's tensor, read part by part and not mapped.

    Raises
    ------
    AdapterError
        The file has become shorter, or torch has no such dtype or shape.
    """
    dtype, values = torch_dtype(entry.dtype), bytearray()
    for chunk in entry.chunks():
        values += chunk
    if not values:
        try:
            return torch.empty(entry.shape, dtype=dtype)
        except RuntimeError as error:  # of sides that torch cannot count with
            raise AdapterError(f"tensor {entry.name!r} cannot be read ({one_line(error)})") from error
    return torch.frombuffer(values, dtype=dtype).reshape(entry.shape)


def same_bytes(first: Entry, second: Entry) -> bool:
    """Whether two entries have the same dtype, shape and bytes."""
    if (first.dtype, first.shape, first.size) != (second.dtype, second.shape, second.size):
        return False
    return _digest(first) == _digest(second)


def write_tensors(path: Path, entries: Iterable[Entry], metadata: dict[str, str] | None = None) -> None:
    """Write the entries to a new file, which is on disk when this returns and gone if it raises.

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


def _read(path: Path, start: int, size: int) -> Iterator[bytes]:
    try:
        yield from range_parts(path, start, size)
    except ShortFileError as error:
        raise AdapterError(f"{path}: the file has become shorter since it was opened") from error
    except OSError as error:
        raise AdapterError(f"{path}: cannot be read ({one_line(error)})") from error


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
    return len(text).to_bytes(_LENGTH_BYTES, "little") + text


def _write_tensor(file: BinaryIO, entry: Entry) -> None:
    written = 0
    for chunk in entry.chunks():
        written += file.write(chunk)
    if written != entry.size:
        raise ValueError(f"tensor {entry.name!r} gave {written} bytes; accepted: {entry.size}")
