"""Which reader a file that holds tensors is opened with."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lowrank_ldu.analysis.readers.base import CheckpointError
from lowrank_ldu.analysis.readers.safetensors_file import SafetensorsReader
from lowrank_ldu.analysis.readers.torch_file import TorchReader

if TYPE_CHECKING:
    from pathlib import Path

    from lowrank_ldu.analysis.readers.base import CheckpointReader

SAFETENSORS_SUFFIX = ".safetensors"
TORCH_SUFFIXES = (".bin", ".pt", ".pth")


def open_file(path: Path) -> CheckpointReader:
    """Open one file that holds tensors, by its suffix."""
    suffix = path.suffix.lower()
    if suffix == SAFETENSORS_SUFFIX:
        return SafetensorsReader(path)
    if suffix in TORCH_SUFFIXES:
        return TorchReader(path)
    raise CheckpointError(
        f"{path}: unknown suffix {path.suffix!r}; accepted: {', '.join((SAFETENSORS_SUFFIX, *TORCH_SUFFIXES))}"
    )
