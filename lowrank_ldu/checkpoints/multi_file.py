"""Read several files as one checkpoint."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from lowrank_ldu.checkpoints.formats import READERS, SAFETENSORS_SUFFIX, SUFFIXES
from lowrank_ldu.checkpoints.formats.safetensors_file import SafetensorsReader
from lowrank_ldu.checkpoints.reader import CheckpointReader
from lowrank_ldu.checkpoints.remote.path import RemotePath
from lowrank_ldu.errors import CheckpointError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    import torch

    from lowrank_ldu.checkpoints.reader import TensorInfo
    from lowrank_ldu.checkpoints.remote.path import Place


def open_file(path: Place, suffix: str = "") -> CheckpointReader:
    """Open one file that holds tensors.

    Parameters
    ----------
    path : pathlib.Path or RemotePath
        Its suffix tells the format.
    suffix : str
        Of the format that a file of an unknown suffix is of, where that is known.
    """
    if isinstance(path, RemotePath):
        known = path.suffix.lower() if path.suffix.lower() in READERS else suffix
        if known != SAFETENSORS_SUFFIX:
            raise CheckpointError(
                f"{path}: only safetensors can be read on a server, by ranges; accepted: {SAFETENSORS_SUFFIX}, its "
                "index, or a folder of them; download the file, and give its path"
            )
        return SafetensorsReader(path)
    reader = READERS.get(path.suffix.lower()) or READERS.get(suffix)
    if reader is None:
        raise CheckpointError(f"{path}: unknown suffix {path.suffix!r}; accepted: {', '.join(SUFFIXES)}")
    return reader(path)


class MultiFileReader(CheckpointReader):
    """Reader of several files, of which it has at most one open.

    Parameters
    ----------
    path : pathlib.Path or RemotePath
        What was opened: an index or a directory.
    stored : mapping of str to TensorInfo
        For every name the tensor that it stands for, as its own file lists it.
    ignored : mapping of str to str
        What the files hold besides plain tensors.
    files : sequence of pathlib.Path or RemotePath
        The files beside an index, or of one folder.
    suffix : str
        Of the format of files with an unknown suffix.

    Attributes
    ----------
    stored, files
        As given.
    directory : pathlib.Path or RemotePath, optional
        The directory, where one was opened; `path` may be an index in it.
    """

    def __init__(
        self,
        path: Place,
        stored: Mapping[str, TensorInfo],
        ignored: Mapping[str, str],
        files: Sequence[Place] = (),
        suffix: str = "",
    ) -> None:
        super().__init__(path, (replace(info, name=name) for name, info in stored.items()), ignored)
        self.stored = dict(stored)
        self.files = tuple(files)
        self.directory: Place | None = None
        self._suffix = suffix
        self._file: CheckpointReader | None = None

    def _read(self, info: TensorInfo) -> torch.Tensor:
        stored = self.stored[info.name]
        if self._file is None or str(self._file.path) != stored.file:
            self._close_file()
            self._file = open_file(self.place(stored), self._suffix)
        return self._file.load(stored.name)

    def _close_file(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None

    def close(self) -> None:
        """Close the file that is open, if one is."""
        super().close()
        self._close_file()


def list_files(files: Iterable[Place], suffix: str = "") -> tuple[list[TensorInfo], dict[str, str]]:
    """Return the tensors of all files, and other contents.

    Other contents are called ``file name:name``. One file is opened after another.
    """
    tensors: list[TensorInfo] = []
    ignored: dict[str, str] = {}
    for file in files:
        with open_file(file, suffix) as reader:
            tensors += reader.tensors
            ignored |= {f"{file.name}:{name}": what for name, what in reader.ignored.items()}
    return tensors, ignored
