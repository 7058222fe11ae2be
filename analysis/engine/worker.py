"""Open checkpoints on a worker of a cluster."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, Any, TypeVar

import lowrank_ldu
from lowrank_ldu.checkpoints.file_states import file_states
from lowrank_ldu.checkpoints.remote.path import RemotePath
from lowrank_ldu.checkpoints.weights import WeightsReader, open_weights
from lowrank_ldu.errors import CheckpointError, ClusterError, WorkerError

if TYPE_CHECKING:
    from collections.abc import Callable

_Arranged = TypeVar("_Arranged")

# Threads of a worker that start together must not open a checkpoint twice.
_opening = Lock()


@dataclass(frozen=True)
class SharedCheckpoint:
    """Identify a checkpoint for the workers.

    They find its tensors by it, and see whether these are the right ones.

    Attributes
    ----------
    version : str
        Of this package.
    path : str
        Of the checkpoint, absolute; or its URL.
    files : tuple of (str, str, str)
        Path, size, and time of change or mark of the content of each file that holds tensors.
    """

    version: str
    path: str
    files: tuple[tuple[str, ...], ...]

    @classmethod
    def of(cls, reader: WeightsReader) -> SharedCheckpoint:
        """Return what identifies an open checkpoint.

        Raises
        ------
        ClusterError
            Its URL holds secrets, which the scheduler and the logs of workers would see.
        """
        path = reader.path
        if isinstance(path, RemotePath) and path.address.has_secrets:
            raise ClusterError(
                f"{path}: was opened with a query or with user information, which workers must not be sent; accepted: "
                "the local engine, or a URL without them, and credentials in the environment of each worker"
            )
        files = ((file, *map(str, state)) for file, state in file_states(reader).items())
        return cls(lowrank_ldu.__version__, str(path.absolute() if isinstance(path, Path) else path), tuple(files))

    def open(self) -> WeightsReader:
        """Open the checkpoint in this process.

        Raises
        ------
        WorkerError
            This machine does not have the same checkpoint at the same path, or another version of this package.
        """
        if self.version != lowrank_ldu.__version__:
            raise WorkerError(f"has lowrank-ldu {lowrank_ldu.__version__}; accepted: {self.version}, as here")
        try:
            reader = open_weights(self.path)
        except CheckpointError as error:
            raise WorkerError(f"{error}; the checkpoint has to be at the same path on every worker") from error
        if SharedCheckpoint.of(reader) != self:
            raise WorkerError(
                f"{self.path}: its files have another size or time of change than those that were opened here"
            )
        return reader


def kept_open(checkpoints: tuple[SharedCheckpoint, ...], arrange: Callable[..., _Arranged]) -> tuple[_Arranged, Lock]:
    """Open checkpoints once for all tasks of this process.

    Parameters
    ----------
    checkpoints : tuple of SharedCheckpoint
    arrange : callable
        A function of a module, called once with the readers. What it returns is kept with them.

    Returns
    -------
    arranged : object
        Of `arrange`.
    reading : Lock
        To be held while something is read: readers are not shared between threads.

    Raises
    ------
    WorkerError
        As for `SharedCheckpoint.open`.
    """
    with _opening:
        return _opened(checkpoints, arrange)


# Readers are kept from task to task. Those that are pushed out are closed when no thread uses them any more.
@lru_cache(maxsize=2)
def _opened(checkpoints: tuple[SharedCheckpoint, ...], arrange: Callable[..., Any]) -> tuple[Any, Lock]:
    return arrange(*(checkpoint.open() for checkpoint in checkpoints)), Lock()


def forget_checkpoints() -> None:
    """Close the checkpoints that are open in this process."""
    with _opening:
        _opened.cache_clear()
