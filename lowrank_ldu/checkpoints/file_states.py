"""Return the state of a checkpoint's files.

It shows whether they are the files that results belong to.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from lowrank_ldu.checkpoints.model_config import CONFIGURATIONS

if TYPE_CHECKING:
    from lowrank_ldu.checkpoints.reader import CheckpointReader


def file_states(reader: CheckpointReader) -> dict[str, list[int]]:
    """Return the size and time of each file of weights.

    Sizes are in bytes, times of the last change in nanoseconds. The files are those that say what the weights are.

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
