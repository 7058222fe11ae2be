"""Write a safetensors file tensor by tensor, so that memory holds one of them and not the file."""

from __future__ import annotations

import json
import os
import secrets
from dataclasses import dataclass
from typing import TYPE_CHECKING, BinaryIO

import torch
from safetensors import safe_open

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from pathlib import Path

    from torch import Tensor

# https://huggingface.co/docs/safetensors: the header's length, the header, the tensors' bytes without gaps.
_LENGTH_BYTES = 8
_ALIGNMENT = 8
_NAMES = {
    torch.float64: "F64", torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16", torch.int64: "I64",
    torch.int32: "I32", torch.int16: "I16", torch.int8: "I8", torch.uint8: "U8", torch.bool: "BOOL",
    torch.uint16: "U16", torch.uint32: "U32", torch.uint64: "U64", torch.float8_e4m3fn: "F8_E4M3",
    torch.float8_e5m2: "F8_E5M2",
}  # fmt: skip


@dataclass(frozen=True)
class Entry:
    """A tensor that is to be written: what the header says of it, and where it comes from.

    Attributes
    ----------
    name : str
    dtype : torch.dtype
    shape : tuple of int
    read : callable
        Gives the tensor, when its turn comes.
    """

    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]
    read: Callable[[], Tensor]

    @property
    def size(self) -> int:
        """Bytes."""
        return self.dtype.itemsize * int(torch.Size(self.shape).numel())


def given(name: str, tensor: Tensor) -> Entry:
    """Return the entry of a tensor that is in memory."""
    return Entry(name, tensor.dtype, tuple(tensor.shape), lambda: tensor)


def entries_of(path: Path) -> list[Entry]:
    """Return the entries of a safetensors file, without reading its tensors."""
    with safe_open(path, framework="pt") as file:
        by_name = {name: dtype for dtype, name in _NAMES.items()}
        slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118
        described = {name: (by_name[part.get_dtype()], tuple(part.get_shape())) for name, part in slices.items()}

    def reader(name: str) -> Callable[[], Tensor]:
        def tensor() -> Tensor:
            with safe_open(path, framework="pt") as file:
                return file.get_tensor(name)  # type: ignore[no-any-return]

        return tensor

    return [Entry(name, dtype, shape, reader(name)) for name, (dtype, shape) in described.items()]


def write_tensors(path: Path, entries: Iterable[Entry], metadata: dict[str, str] | None = None) -> None:
    """Write the entries to `path`, which is there whole or not at all.

    Raises
    ------
    ValueError
        An entry gives a tensor of another dtype or shape than it says.
    """
    # Wide numbers first: every tensor then starts at a multiple of its own item's size, which readers that map the file
    # into memory count on.
    entries = sorted(entries, key=lambda entry: -entry.dtype.itemsize)
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        with temporary.open("xb") as file:
            file.write(_header(entries, metadata))
            for entry in entries:
                _write_tensor(file, entry)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def _header(entries: list[Entry], metadata: dict[str, str] | None) -> bytes:
    header: dict[str, object] = {"__metadata__": metadata} if metadata else {}
    start = 0
    for entry in entries:
        offsets = [start, start + entry.size]
        header[entry.name] = {"dtype": _NAMES[entry.dtype], "shape": list(entry.shape), "data_offsets": offsets}
        start += entry.size
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % _ALIGNMENT)
    return len(text).to_bytes(_LENGTH_BYTES, "little") + text


def _write_tensor(file: BinaryIO, entry: Entry) -> None:
    tensor = entry.read().detach().cpu().contiguous()
    if tensor.dtype != entry.dtype or tuple(tensor.shape) != entry.shape:
        raise ValueError(
            f"tensor {entry.name!r} is {tensor.dtype} {tuple(tensor.shape)}; accepted: {entry.dtype} {entry.shape}"
        )
    if tensor.numel():
        file.write(tensor.flatten().view(torch.uint8).numpy().data)
