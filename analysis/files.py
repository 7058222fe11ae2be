"""The state of the files of a checkpoint: whether they are those that results belong to."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lowrank_ldu.analysis.readers import CheckpointReader


def file_states(reader: CheckpointReader) -> dict[str, list[int]]:
    """Return, for each file that holds tensors, its size in bytes and when it was last changed, in nanoseconds.

    Parameters
    ----------
    reader : CheckpointReader

    Returns
    -------
    dict of str to list of int
        By absolute path, links followed.
    """
    states = {}
    for file in sorted({info.file for info in reader.tensors}):
        stat = Path(file).stat()
        states[str(Path(file).resolve())] = [stat.st_size, stat.st_mtime_ns]
    return states
