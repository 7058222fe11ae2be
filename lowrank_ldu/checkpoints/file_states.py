"""Return the state of a checkpoint's files.

It shows whether they are the files that results belong to.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from lowrank_ldu.checkpoints.model_config import ADAPTER_CONFIGURATION, CONFIGURATIONS, is_there
from lowrank_ldu.checkpoints.remote.path import RemotePath

if TYPE_CHECKING:
    from lowrank_ldu.checkpoints.reader import CheckpointReader
    from lowrank_ldu.checkpoints.remote.path import Place


def file_states(reader: CheckpointReader) -> dict[str, list[int | str]]:
    """Return the size and time of each file of weights.

    Sizes are in bytes, times of the last change in nanoseconds. Of a file on a server it is the version, the ETag or
    the time that the server gave when it was opened, where it gives one. The files are those that say what the weights
    are.

    Those that hold tensors, of an ONNX model also those beside it, and the configuration of the model or the
    adapter beside them where there is one.

    Parameters
    ----------
    reader : CheckpointReader

    Returns
    -------
    dict of str to list of int or str
        By absolute path, links followed, or by URL without secrets.
    """
    files = {reader.place(info) for info in reader.tensors}
    names = (*CONFIGURATIONS, *([ADAPTER_CONFIGURATION] * reader.holds_updates))
    beside = {folder / name for folder in {file.parent for file in files} for name in names}
    beside |= set(reader.other_files)
    return dict(sorted(_state(file) for file in files | {file for file in beside if is_there(file)}))


def _state(file: Place) -> tuple[str, list[int | str]]:
    if isinstance(file, RemotePath):
        state = file.state()
        return str(file), [state.size, state.version]
    stat = file.stat()
    return str(file.resolve()), [stat.st_size, stat.st_mtime_ns]
