"""Readers of model checkpoints: one interface over the files of several formats, sharded indexes and directories."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from lowrank_ldu.checkpoints.directory import INDEX_SUFFIXES, open_directory, open_index
from lowrank_ldu.checkpoints.formats import SUFFIXES, open_file
from lowrank_ldu.checkpoints.hub import PREFIX, fetch
from lowrank_ldu.checkpoints.reader import CheckpointReader, TensorInfo
from lowrank_ldu.errors import CheckpointError

if TYPE_CHECKING:
    import os

__all__ = ["CheckpointError", "CheckpointReader", "TensorInfo", "open_checkpoint"]


def __dir__() -> list[str]:
    return __all__


def open_checkpoint(path: str | os.PathLike[str]) -> CheckpointReader:
    """Open a checkpoint, whatever its format.

    Parameters
    ----------
    path : str or os.PathLike
        A ``.safetensors`` file; a ``.pt``, ``.pth`` or ``.bin`` file that ``torch.save`` wrote; ``.gguf``; ``.onnx``;
        ``.weights.h5`` or ``.h5`` of Keras; ``.npy`` or ``.npz``; an index of shards (``.safetensors.index.json``,
        ``.bin.index.json``); a directory that holds safetensors or torch files, or folders with them; or ``hf://OWNER/NAME``
        or ``hf://OWNER/NAME@REVISION`` on the Hugging Face hub, which is fetched to the local cache.

    Returns
    -------
    CheckpointReader
        A context manager with the list of tensors. Only headers have been read, where the format allows it.

    Raises
    ------
    CheckpointError
        If nothing is there, if it is none of these, if it is damaged, or if reading it would mean running code.

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
    if str(path) == "":
        raise CheckpointError("the name of the checkpoint is empty; accepted: a file, a directory, or hf://OWNER/NAME")
    path = fetch(str(path)) if str(path).startswith(PREFIX) else Path(path)
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
    if path.suffix.lower() in SUFFIXES:
        return open_file(path)
    accepted = ", ".join((*SUFFIXES, *INDEX_SUFFIXES))
    raise CheckpointError(f"{path}: unknown suffix {path.suffix!r}; accepted: {accepted}, or a directory")
