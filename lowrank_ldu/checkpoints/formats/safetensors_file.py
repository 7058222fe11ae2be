"""A single ``.safetensors`` file."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from safetensors import SafetensorError, safe_open

from lowrank_ldu.checkpoints.libraries import empty_tensor, refused_as, stored_range
from lowrank_ldu.checkpoints.reader import CheckpointReader, TensorInfo
from lowrank_ldu.errors import CheckpointError
from lowrank_ldu.untrusted import safetensors_header

if TYPE_CHECKING:
    from pathlib import Path

_DTYPES = {
    "BOOL": "bool",
    "U8": "uint8",
    "U16": "uint16",
    "U32": "uint32",
    "U64": "uint64",
    "I8": "int8",
    "I16": "int16",
    "I32": "int32",
    "I64": "int64",
    "F8_E4M3": "float8_e4m3fn",
    "F8_E4M3FNUZ": "float8_e4m3fnuz",
    "F8_E5M2": "float8_e5m2",
    "F8_E5M2FNUZ": "float8_e5m2fnuz",
    "F8_E8M0": "float8_e8m0fnu",
    "F16": "float16",
    "BF16": "bfloat16",
    "F32": "float32",
    "F64": "float64",
    "C64": "complex64",
}


class SafetensorsReader(CheckpointReader):
    """Reader of one ``.safetensors`` file; only its header is read until a tensor is loaded.

    Parameters
    ----------
    path : pathlib.Path
        The file.

    Raises
    ------
    CheckpointError
        If the file is missing, or is not a whole and valid safetensors file.
    """

    def __init__(self, path: Path) -> None:
        with refused_as(path, "safetensors file", (SafetensorError, OSError, ValueError)):
            # The library checks the header against the file. It is not asked for the values: its torch side maps the
            # whole file as private memory, which Linux refuses for a file larger than the machine's memory.
            with safe_open(path, framework="numpy"):
                pass
            header, values = safetensors_header(path)
        entries = sorted(header.items(), key=lambda item: item[1]["data_offsets"])
        self._starts = {name: values + entry["data_offsets"][0] for name, entry in entries}
        tensors = []
        for name, entry in entries:
            start, end = entry["data_offsets"]
            dtype = _DTYPES.get(entry["dtype"], entry["dtype"])
            tensors.append(TensorInfo(name, tuple(entry["shape"]), dtype, str(path), end - start))
        super().__init__(path, tensors, {})

    def _read(self, info: TensorInfo) -> torch.Tensor:
        dtype = getattr(torch, info.dtype, None)
        if dtype is None:
            raise CheckpointError(
                f"{self.path}: tensor {info.name!r} is stored as {info.dtype}, which torch {torch.__version__} has no "
                f"plain tensors of; accepted: {', '.join(name for name in _DTYPES.values() if hasattr(torch, name))}"
            )
        if info.nbytes == 0:
            return empty_tensor(self.path, info.name, info.shape, dtype)
        values = stored_range(self.path, info.name, self._starts[info.name], info.nbytes)
        return torch.frombuffer(values, dtype=dtype).reshape(info.shape)
