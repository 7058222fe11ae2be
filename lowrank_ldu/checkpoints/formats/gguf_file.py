"""Read a GGUF file, of llama.cpp and its kin."""

from __future__ import annotations

import tempfile
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch

from lowrank_ldu.checkpoints.formats.gguf_header import header_of
from lowrank_ldu.checkpoints.reader import CheckpointReader, TensorInfo, Unread
from lowrank_ldu.checkpoints.safe_reading import LIBRARY_ERRORS, empty_tensor, library_for, refused_as, stored_range
from lowrank_ldu.errors import CheckpointError

if TYPE_CHECKING:
    from pathlib import Path

# torch's names of the types that are not quantized.
_PLAIN = {
    "F64": "float64",
    "F32": "float32",
    "F16": "float16",
    "BF16": "bfloat16",
    "I64": "int64",
    "I32": "int32",
    "I16": "int16",
    "I8": "int8",
}


class _Stored(NamedTuple):
    """Hold where a tensor's values are, and how numpy reads them."""

    name: str
    kind: Any
    logical: tuple[int, ...]
    start: int
    size: int
    dtype: np.dtype[Any]
    shape: tuple[int, ...]


class GgufReader(CheckpointReader):
    """Reader of one ``.gguf`` file; quantized tensors are dequantized to float32.

    The library is given the header alone, in a file of its own. Values are read when they are asked for.

    Of files whose byte order is not this machine's the numbers of one size are read. Blocks and bfloat16 are not: the
    gguf library's writer leaves their bytes as they are, its converter turns them, and nothing says which it was.

    Shapes are given with the slowest axis first, as torch's are: GGUF lists the fastest first.

    Parameters
    ----------
    path : pathlib.Path
        The file.

    Raises
    ------
    CheckpointError
        If the file is missing or not a whole GGUF file, or if the gguf library is not installed.
    """

    def __init__(self, path: Path) -> None:
        self._library = library_for(path, "gguf")
        with refused_as(path, "GGUF file", LIBRARY_ERRORS), np.errstate(all="ignore"):
            stored, swapped = _described(self._library, path)
            ignored = {
                tensor.name: Unread(
                    f"{tensor.kind.name} tensor in a file of the other byte order; accepted: F16, F32 and the like, or "
                    "a model that is converted for this machine"
                )
                for tensor in stored
                if swapped and tensor.dtype == np.uint8
            }
            self._stored = {tensor.name: tensor for tensor in stored if tensor.name not in ignored}
            tensors = [_info(tensor, path) for tensor in self._stored.values()]
        super().__init__(path, tensors, ignored)

    def _read(self, info: TensorInfo) -> torch.Tensor:
        stored = self._stored[info.name]
        values = self._values(info, stored)
        kind = stored.kind.name
        if not values.size:
            return empty_tensor(self.path, info.name, info.shape, getattr(torch, info.dtype))
        if kind == "BF16":
            return torch.from_numpy(values.copy()).view(torch.bfloat16).reshape(info.shape)
        if kind in _PLAIN:
            native = values.astype(values.dtype.newbyteorder("="))
            return torch.from_numpy(native).reshape(info.shape)
        try:
            # Damaged scales make numbers that are not finite, which are reported where they are analyzed.
            with np.errstate(all="ignore"):
                return torch.from_numpy(self._library.dequantize(values, stored.kind)).reshape(info.shape)
        except NotImplementedError as error:
            raise CheckpointError(
                f"{self.path}: tensor {info.name!r} is stored as {kind}, which the gguf library does not dequantize"
            ) from error

    def _values(self, info: TensorInfo, stored: _Stored) -> np.ndarray:
        values = stored_range(self.path, info.name, stored.start, stored.size)
        return np.frombuffer(values, stored.dtype).reshape(stored.shape)


def _described(library: Any, path: Path) -> tuple[list[_Stored], bool]:
    """List where the library finds each tensor.

    Return too whether bytes are in the other order.

    It is given the header, at the beginning of a file as long as this one.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        header = header_of(file, size)
    with tempfile.NamedTemporaryFile(suffix=".gguf") as copy:
        copy.write(header)
        copy.truncate(size)  # a hole, which takes no room
        copy.flush()
        reader = library.GGUFReader(copy.name)
        tensors = [
            _Stored(
                tensor.name,
                tensor.tensor_type,
                tuple(int(length) for length in reversed(tensor.shape)),
                int(tensor.data_offset),
                int(tensor.n_bytes),
                tensor.data.dtype,
                tensor.data.shape,
            )
            for tensor in reader.tensors
        ]
        return tensors, reader.byte_order == "S"


def _info(tensor: _Stored, path: Path) -> TensorInfo:
    kind = tensor.kind.name
    dtype = _PLAIN.get(kind, "float32")
    return TensorInfo(tensor.name, tensor.logical, dtype, str(path), tensor.size, "" if kind in _PLAIN else kind)
