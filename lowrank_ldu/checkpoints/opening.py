"""Open a checkpoint by its path.

The path is a file, a folder, an index of shards, a URL, or a name on the hub.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from lowrank_ldu.checkpoints.adapter_folder import why_no_weights_in
from lowrank_ldu.checkpoints.folders import INDEX_SUFFIXES, open_directory, open_index
from lowrank_ldu.checkpoints.formats import SUFFIXES, suffix_by_content
from lowrank_ldu.checkpoints.hub import PREFIX, find
from lowrank_ldu.checkpoints.multi_file import open_file
from lowrank_ldu.checkpoints.remote.address import HUB, check_no_url, check_url, scheme_of
from lowrank_ldu.checkpoints.remote.path import RemotePath, remote_path
from lowrank_ldu.errors import CheckpointError
from lowrank_ldu.validation import check_path

if TYPE_CHECKING:
    import os

    from lowrank_ldu.checkpoints.reader import CheckpointReader
    from lowrank_ldu.checkpoints.remote.path import Place

# Suffixes that no folder's name ends in; of other files the suffix is seen when they are opened.
_OTHER_FILES = (".json", ".zip", ".ckpt", ".tar", ".gz", ".msgpack", ".pkl")


def open_checkpoint(path: str | os.PathLike[str]) -> CheckpointReader:
    """Open a checkpoint, whatever its format.

    Parameters
    ----------
    path : str or os.PathLike
        A ``.safetensors`` file; a file that ``torch.save`` wrote, of whatever name; ``.gguf``; ``.onnx``;
        ``.weights.h5`` or ``.h5`` of Keras; ``.npy`` or ``.npz``; an index of shards (``.safetensors.index.json``,
        ``.bin.index.json``); a directory that holds safetensors or torch files, or folders with them; or, of
        safetensors, ``https://``, ``s3://`` or ``gs://`` and the place of a file, an index or a directory, and
        ``hf://OWNER/NAME`` or ``hf://OWNER/NAME@REVISION`` on the Hugging Face hub, which are read by ranges.

    Returns
    -------
    CheckpointReader
        A context manager with the list of tensors. Only headers have been read, where the format allows it.

    Raises
    ------
    TypeError
        If `path` is no path.
    CheckpointError
        If nothing is there, if it is none of these, if it is damaged, or if reading it would mean running code;
        `RemoteError`, which is one, if a server does not give it.

    Examples
    --------
    >>> import tempfile
    >>> from pathlib import Path
    >>> import torch
    >>> from safetensors.torch import save_file
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     file = Path(folder, "model.safetensors")
    ...     save_file({"bias": torch.zeros(3), "weight": torch.ones(3, 2, dtype=torch.bfloat16)}, file)
    ...     with open_checkpoint(file) as checkpoint:
    ...         for info in checkpoint.tensors:
    ...             print(info.name, info.shape, info.dtype, info.nbytes)
    ...         weight = checkpoint.load("weight")
    bias (3,) float32 12
    weight (3, 2) bfloat16 12
    >>> weight.dtype
    torch.bfloat16
    """
    check_path(path, "path")
    if str(path) == "":
        raise CheckpointError("the name of the checkpoint is empty; accepted: a file, a directory, or hf://OWNER/NAME")
    if scheme_of(str(path)) is not None:
        found = _find(str(path))
        if isinstance(found, RemotePath):
            return open_remote(found)
        path = found
    check_no_url(str(path))
    path = Path(path)
    try:
        is_directory = path.is_dir()
        is_file = path.is_file()
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be looked up ({error.strerror})") from error
    if is_directory:
        return open_directory(path)
    if not is_file:
        # A pipe would be waited for, a device might never end.
        raise CheckpointError(f"{path}: no such file or directory, or not a regular file")
    if path.name.lower().endswith(INDEX_SUFFIXES):
        return open_index(path)
    suffix = "" if path.suffix.lower() in SUFFIXES else suffix_by_content(path)
    if suffix or path.suffix.lower() in SUFFIXES:
        return _open_one(path, suffix)
    accepted = ", ".join((*SUFFIXES, *INDEX_SUFFIXES))
    raise CheckpointError(
        f"{path}: unknown suffix {path.suffix!r}, and its first bytes are of no format that is known; accepted: "
        f"{accepted}, or a directory"
    )


def _find(url: str) -> Place:
    check_url(url)
    return find(PREFIX + url.partition("://")[2]) if scheme_of(url) == HUB else remote_path(url)


def open_remote(path: RemotePath) -> CheckpointReader:
    """Open safetensors on a server.

    Parameters
    ----------
    path : RemotePath
        A file, an index of shards, or a folder with the one or the other.
    """
    if path.name.lower().endswith(INDEX_SUFFIXES):
        return open_index(path)
    return _open_one(path) if path.suffix.lower() in (*SUFFIXES, *_OTHER_FILES) else open_directory(path)


def _open_one(path: Place, suffix: str = "") -> CheckpointReader:
    reader = open_file(path, suffix)
    reader.no_weights = why_no_weights_in(path)
    return reader
