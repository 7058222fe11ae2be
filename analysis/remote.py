"""What a worker of a cluster does: it opens the checkpoint that it is told of, and analyses a tensor of it."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from threading import Lock
from typing import TYPE_CHECKING

import lowrank_ldu
from lowrank_ldu.analysis.files import file_states
from lowrank_ldu.analysis.survey import load, timed_analysis
from lowrank_ldu.analysis.weights import open_weights
from lowrank_ldu.analysis.workers import limit_threads
from lowrank_ldu.errors import CheckpointError, WorkerError

if TYPE_CHECKING:
    from lowrank_ldu.analysis.matrix import MatrixAnalysis
    from lowrank_ldu.analysis.options import SurveyOptions
    from lowrank_ldu.analysis.readers import CheckpointReader, TensorInfo

# Threads of a worker that begin together must not open a checkpoint twice.
_opening = Lock()


@dataclass(frozen=True)
class Source:
    """What a worker has to know to find the tensors, and to know that they are the right ones.

    Attributes
    ----------
    version : str
        Of this package.
    path : str
        Of the checkpoint, absolute.
    files : tuple of (str, int, int)
        Path, size and time of change of each file that holds tensors.
    """

    version: str
    path: str
    files: tuple[tuple[str, ...], ...]

    @classmethod
    def of(cls, reader: CheckpointReader) -> Source:
        """Return the source of an open checkpoint."""
        files = ((file, *map(str, state)) for file, state in file_states(reader).items())
        return cls(lowrank_ldu.__version__, str(reader.path.absolute()), tuple(files))


def analyse_remotely(source: Source, options: SurveyOptions, info: TensorInfo) -> tuple[MatrixAnalysis | str, float]:
    """Read a tensor and analyse it with one thread: a worker has as many tasks at once as it has threads.

    Parameters
    ----------
    source : Source
    options : SurveyOptions
    info : TensorInfo

    Returns
    -------
    tuple of MatrixAnalysis or str, and float
        As of `timed_analysis`.

    Raises
    ------
    WorkerError
        This machine does not have the same checkpoint at the same path, or another version of this package.
    """
    limit_threads(1)
    with _opening:
        reader, reading = _opened(source)
    with reading:
        holder = [load(reader, info)]
    return timed_analysis(info, holder, options)


# Kept from task to task. Readers that are pushed out are closed when the last thread has let go of them.
@lru_cache(maxsize=2)
def _opened(source: Source) -> tuple[CheckpointReader, Lock]:
    if source.version != lowrank_ldu.__version__:
        raise WorkerError(f"has lowrank-ldu {lowrank_ldu.__version__}; accepted: {source.version}, as here")
    try:
        reader = open_weights(source.path)
    except CheckpointError as error:
        raise WorkerError(f"{error}; the checkpoint has to be at the same path on every worker") from error
    if Source.of(reader) != source:
        raise WorkerError(
            f"{source.path}: its files have another size or time of change than those that were opened here"
        )
    return reader, Lock()


def forget_checkpoints() -> None:
    """Let go of the checkpoints that are open in this process."""
    with _opening:
        _opened.cache_clear()
