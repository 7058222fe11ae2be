"""Read the base model of an export.

The readers of checkpoints read its safetensors files; its configuration is read beside them.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING

from lowrank_ldu.adapters.exports.architecture import Architecture, architecture_of
from lowrank_ldu.checkpoints.folders import INDEX_SUFFIXES
from lowrank_ldu.checkpoints.formats.safetensors_file import SafetensorsReader, torch_dtype
from lowrank_ldu.checkpoints.multi_file import MultiFileReader
from lowrank_ldu.checkpoints.remote.path import RemotePath
from lowrank_ldu.checkpoints.safe_reading import reason_of
from lowrank_ldu.checkpoints.writer import stored
from lowrank_ldu.errors import CheckpointError
from lowrank_ldu.untrusted import check_regular

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    import torch
    from torch import Tensor

    from lowrank_ldu.checkpoints import CheckpointReader, TensorInfo
    from lowrank_ldu.checkpoints.remote.path import Place
    from lowrank_ldu.checkpoints.writer import Entry

_INDEX = INDEX_SUFFIXES[0]
# Longest side of a tensor without values: the library takes such a tensor.
_LONGEST_SIDE = 2**63 - 1


class BaseModel:
    """Hold the safetensors files of a base as they are stored.

    Parameters
    ----------
    reader : CheckpointReader
        Of a .safetensors file, an index of shards, or a folder with one or the other.

    Attributes
    ----------
    path : Path
        The file, the index or the folder that was opened.
    root : Path
        Folder of the files.
    index : Path or None
        Of the shards, where there is one.
    files : dict of str to SafetensorsReader
        By the name of the file in `root`.

    Raises
    ------
    CheckpointError
        The checkpoint is another one, or a tensor is in two of its files or larger than anything can be.
    """

    def __init__(self, reader: CheckpointReader) -> None:
        place = reader.path if not isinstance(reader, MultiFileReader) else reader.directory or reader.path
        self.path = _here(place)
        self.index = _here(reader.path) if reader.path.name.endswith(_INDEX) else None
        paths = _safetensors_files(reader, self.path)
        self.root = self.path if self.path.is_dir() else self.path.parent
        self.files = {path.relative_to(self.root).as_posix(): _opened(path) for path in sorted(paths)}
        self._places: dict[str, str] = {}
        for file, opened in self.files.items():
            for info in opened.tensors:
                if info.name in self._places:
                    raise CheckpointError(
                        f"{self.root}: tensor {info.name!r} is in {self._places[info.name]} and in {file}; accepted: "
                        "each tensor once"
                    )
                self._places[info.name] = file

    def __iter__(self) -> Iterator[str]:
        return iter(self._places)

    def __contains__(self, name: object) -> bool:
        return name in self._places

    def __len__(self) -> int:
        return len(self._places)

    @functools.cached_property
    def architecture(self) -> Architecture | None:
        """Build the architecture when it is first asked for."""
        return architecture_of(self.root, len(self))

    def info(self, name: str) -> TensorInfo:
        """Return the facts known of a tensor before it is read."""
        return self.files[self._places[name]].info(name)

    def tensor(self, name: str) -> Tensor:
        """Read one tensor."""
        return self.files[self._places[name]].load(name)

    def shape(self, name: str) -> tuple[int, ...]:
        """Return the shape of a tensor."""
        return self.info(name).shape

    def dtype(self, name: str) -> torch.dtype:
        """Return the dtype of a tensor."""
        return torch_dtype(self.info(name))

    def entry(self, name: str) -> Entry:
        """Return a tensor as it is stored, to be copied."""
        return stored(self.files[self._places[name]], name)


def _safetensors_files(reader: CheckpointReader, path: Path) -> tuple[Path, ...]:
    if isinstance(reader, SafetensorsReader):
        return (path,)
    if not isinstance(reader, MultiFileReader) or not (reader.directory or reader.path.name.endswith(_INDEX)):
        raise CheckpointError(
            f"{path}: accepted: a .safetensors file, an index of shards, or a folder with one of them"
        )
    if reader.directory is not None:
        indices, files = sorted(path.glob(f"*{_INDEX}")), sorted(path.glob("*.safetensors"))
        if len(indices) != 1 and (indices or len(files) != 1):
            found = ", ".join(file.name for file in [*indices, *files]) or "none"
            raise CheckpointError(
                f"{path}: accepted: a folder with one safetensors file or one index of them; found: {found}"
            )
        for index in indices:
            _check_regular(index)
    return tuple(map(_here, reader.files))


def _here(place: Place) -> Path:
    """Return a place as a path on this machine."""
    if isinstance(place, RemotePath):
        raise CheckpointError(
            f"{place}: is on a server; accepted: a base model on this machine; download it, and give its path "
            "(what `hf download` has brought to the local cache is read there, by the same name)"
        )
    return place


def _opened(path: Path) -> SafetensorsReader:
    # Holes would be copied until the disk is full.
    _check_regular(path)
    reader = SafetensorsReader(path)
    for info in reader.tensors:
        if any(size > _LONGEST_SIDE for size in info.shape):
            raise CheckpointError(
                f"{path}: tensor {info.name!r} has shape {info.shape}; accepted: at most {_LONGEST_SIDE} a side"
            )
    return reader


def _check_regular(path: Path) -> None:
    try:
        check_regular(path)
    except (OSError, ValueError) as error:
        raise CheckpointError(
            f"{path}: {reason_of(error)}; accepted: the safetensors files of a base model, and their index"
        ) from error
