"""A GGUF file, of llama.cpp and its kin."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from lowrank_ldu.analysis.readers.base import CheckpointError, CheckpointReader, TensorInfo
from lowrank_ldu.analysis.readers.extra import library_for, refused_as

if TYPE_CHECKING:
    from pathlib import Path

# As torch calls the types that are not quantised.
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
# What the library raises on files that are cut off, damaged or hostile: it follows the bytes wherever they lead.
_ERRORS = (ArithmeticError, AttributeError, LookupError, MemoryError, OSError, RecursionError, TypeError, ValueError)


class GgufReader(CheckpointReader):
    """Reader of one ``.gguf`` file, which is mapped, not read; quantised tensors are dequantised to float32.

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
        with refused_as(path, "GGUF file", _ERRORS):
            stored = self._library.GGUFReader(path).tensors
            self._stored: dict[str, Any] = {tensor.name: tensor for tensor in stored}
            tensors = [_info(tensor, path) for tensor in stored]
        super().__init__(path, tensors, {})

    def _read(self, info: TensorInfo) -> torch.Tensor:
        stored = self._stored[info.name]
        kind = stored.tensor_type.name
        if kind == "BF16":
            return torch.from_numpy(stored.data.copy()).view(torch.bfloat16).reshape(info.shape)
        if kind in _PLAIN:
            native = stored.data.astype(stored.data.dtype.newbyteorder("="))
            return torch.from_numpy(native).reshape(info.shape)
        try:
            return torch.from_numpy(self._library.dequantize(stored.data, stored.tensor_type)).reshape(info.shape)
        except NotImplementedError as error:
            raise CheckpointError(
                f"{self.path}: tensor {info.name!r} is stored as {kind}, which the gguf library does not dequantise"
            ) from error

    def close(self) -> None:
        """Let go of the mapped file."""
        super().close()
        self._stored.clear()


def _info(tensor: Any, path: Path) -> TensorInfo:
    kind = tensor.tensor_type.name
    shape = tuple(int(size) for size in reversed(tensor.shape))
    dtype = _PLAIN.get(kind, "float32")
    return TensorInfo(tensor.name, shape, dtype, str(path), int(tensor.n_bytes), "" if kind in _PLAIN else kind)
