"""Which reader a file that holds tensors is opened with."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lowrank_ldu.checkpoints.formats.gguf_file import GgufReader
from lowrank_ldu.checkpoints.formats.hdf5_file import Hdf5Reader
from lowrank_ldu.checkpoints.formats.numpy_file import NumpyReader
from lowrank_ldu.checkpoints.formats.onnx_file import OnnxReader
from lowrank_ldu.checkpoints.formats.safetensors_file import SafetensorsReader
from lowrank_ldu.checkpoints.formats.torch_file import TorchReader
from lowrank_ldu.errors import CheckpointError

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from lowrank_ldu.checkpoints.reader import CheckpointReader

SAFETENSORS_SUFFIX = ".safetensors"
TORCH_SUFFIXES = (".bin", ".pt", ".pth")
_READERS: dict[str, Callable[[Path], CheckpointReader]] = {
    SAFETENSORS_SUFFIX: SafetensorsReader,
    **dict.fromkeys(TORCH_SUFFIXES, TorchReader),
    ".gguf": GgufReader,
    ".onnx": OnnxReader,
    ".h5": Hdf5Reader,
    ".hdf5": Hdf5Reader,
    ".npy": NumpyReader,
    ".npz": NumpyReader,
}
SUFFIXES = tuple(_READERS)


def open_file(path: Path) -> CheckpointReader:
    """Open one file that holds tensors, by its suffix."""
    reader = _READERS.get(path.suffix.lower())
    if reader is None:
        raise CheckpointError(f"{path}: unknown suffix {path.suffix!r}; accepted: {', '.join(SUFFIXES)}")
    return reader(path)
