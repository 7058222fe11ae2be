"""Tensors spread over several files."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from lowrank_ldu.analysis.readers.base import CheckpointReader
from lowrank_ldu.analysis.readers.single_file import open_file

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    import torch

    from lowrank_ldu.analysis.readers.base import TensorInfo


class MultiFileReader(CheckpointReader):
    """Reader of several files, of which it has at most one open.

    Parameters
    ----------
    path : pathlib.Path
        What was opened: an index or a directory.
    stored : mapping of str to TensorInfo
        For every name the tensor that it stands for, as its own file lists it.
    ignored : mapping of str to str
        What the files hold besides plain tensors.

    Attributes
    ----------
    stored : dict of str to TensorInfo
        As given.
    """

    def __init__(self, path: Path, stored: Mapping[str, TensorInfo], ignored: Mapping[str, str]) -> None:
        super().__init__(path, (replace(info, name=name) for name, info in stored.items()), ignored)
        self.stored = dict(stored)
        self._file: CheckpointReader | None = None

    def _read(self, info: TensorInfo) -> torch.Tensor:
        stored = self.stored[info.name]
        if self._file is None or str(self._file.path) != stored.file:
            self._close_file()
            self._file = open_file(Path(stored.file))
        return self._file.load(stored.name)

    def _close_file(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None

    def close(self) -> None:
        """Close the file that is open, if one is."""
        super().close()
        self._close_file()


def list_files(files: Iterable[Path]) -> tuple[list[TensorInfo], dict[str, str]]:
    """Return the tensors of all files, and what else they hold under ``file name:name``, opening one after another."""
    tensors: list[TensorInfo] = []
    ignored: dict[str, str] = {}
    for file in files:
        with open_file(file) as reader:
            tensors += reader.tensors
            ignored |= {f"{file.name}:{name}": what for name, what in reader.ignored.items()}
    return tensors, ignored
