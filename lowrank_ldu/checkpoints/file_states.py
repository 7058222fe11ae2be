"""The state of the files of a checkpoint: whether they are those that results belong to."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from lowrank_ldu.checkpoints.model_config import CONFIGURATIONS

if TYPE_CHECKING:
    from lowrank_ldu.checkpoints.reader import CheckpointReader


def file_states(reader: CheckpointReader) -> dict[str, list[int]]:
    """Return, for each file that says what the weights are, its size in bytes and when it was changed, in nanoseconds.

    Those that hold tensors, and the model's configuration beside them where there is one.

    Parameters
    ----------
    reader : CheckpointReader

    Returns
    -------
    dict of str to list of int
        By absolute path, links followed.
    """
    states = {}
    files = {Path(info.file) for info in reader.tensors}
    beside = {folder / name for folder in {file.parent for file in files} for name in CONFIGURATIONS}
    for file in sorted(files | {file for file in beside if file.is_file()}):
        stat = file.stat()
        states[str(file.resolve())] = [stat.st_size, stat.st_mtime_ns]
    return states
