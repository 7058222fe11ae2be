"""List the readers of single files by suffix."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lowrank_ldu.checkpoints.formats.gguf_file import GgufReader
from lowrank_ldu.checkpoints.formats.hdf5_file import Hdf5Reader
from lowrank_ldu.checkpoints.formats.numpy_file import NumpyReader
from lowrank_ldu.checkpoints.formats.onnx_file import OnnxReader
from lowrank_ldu.checkpoints.formats.safetensors_file import SafetensorsReader
from lowrank_ldu.checkpoints.formats.torch_file import TorchReader

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from lowrank_ldu.checkpoints.reader import CheckpointReader

SAFETENSORS_SUFFIX = ".safetensors"
TORCH_SUFFIXES = (".bin", ".pt", ".pth")
READERS: dict[str, Callable[[Path], CheckpointReader]] = {
    SAFETENSORS_SUFFIX: SafetensorsReader,
    **dict.fromkeys(TORCH_SUFFIXES, TorchReader),
    ".gguf": GgufReader,
    ".onnx": OnnxReader,
    ".h5": Hdf5Reader,
    ".hdf5": Hdf5Reader,
    ".npy": NumpyReader,
    ".npz": NumpyReader,
}
SUFFIXES = tuple(READERS)
