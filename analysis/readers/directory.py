"""A directory that holds a checkpoint."""

from __future__ import annotations

from fnmatch import fnmatch
from typing import TYPE_CHECKING

from lowrank_ldu.analysis.readers.extra import reason_of
from lowrank_ldu.analysis.readers.lora_folder import LoraReader, lora_config
from lowrank_ldu.analysis.readers.multi_file import MultiFileReader, list_files
from lowrank_ldu.analysis.readers.sharded_index import INDEX_SUFFIXES, open_index
from lowrank_ldu.analysis.readers.single_file import SAFETENSORS_SUFFIX, TORCH_SUFFIXES
from lowrank_ldu.errors import CheckpointError

if TYPE_CHECKING:
    from pathlib import Path

    from lowrank_ldu.analysis.readers.base import CheckpointReader, TensorInfo

# What training loops leave beside a model; none of it is weights.
_NOT_MODELS = ("training_args.bin", "optimizer.*", "scheduler.*", "scaler.*", "rng_state*")


def open_directory(path: Path) -> CheckpointReader:
    """Open the checkpoint in a directory.

    The first of these that is there is read: the safetensors index, all safetensors files, the index of ``.bin``
    shards, all torch files that are not known to be something else than a model (an optimizer's state, say). An index
    counts if it is called ``model.safetensors.index.json`` or ``pytorch_model.bin.index.json``, or is the only one.
    If there is none, the same in each of its folders, as a diffusers pipeline has them: names of tensors are preceded
    by the folder's and a slash. Hidden files and folders are not looked at. A LoRA adapter that PEFT saved gives the
    updates that it makes (`LoraReader`).

    Parameters
    ----------
    path : pathlib.Path
        The directory.

    Returns
    -------
    CheckpointReader
        All tensors. Where two files have a tensor of the same name, every name is preceded by its file's and a colon.

    Raises
    ------
    CheckpointError
        If there is none of these, or if what is there cannot be read.
    """
    try:
        config = lora_config(path)
        reader = _open_own_files(path)
        if reader is None:
            reader = _open_subdirectories(path)
    except OSError as error:
        raise CheckpointError(f"{path}: the directory cannot be read ({reason_of(error)})") from error
    return reader if config is None else LoraReader(path, config, reader)


def _open_own_files(path: Path) -> MultiFileReader | None:
    """Return a reader of the checkpoint that is in a directory itself, None if there is none."""
    files = [file for file in _entries(path) if file.is_file()]
    safetensors_index, torch_index = INDEX_SUFFIXES
    index = _find_index(files, safetensors_index, "model")
    if index is not None:
        return open_index(index)
    chosen = [file for file in files if file.suffix == SAFETENSORS_SUFFIX]
    if chosen:
        return _open_files(path, chosen)
    index = _find_index(files, torch_index, "pytorch_model")
    if index is not None:
        return open_index(index)
    chosen = [
        file
        for file in files
        if file.suffix in TORCH_SUFFIXES and not any(fnmatch(file.name, pattern) for pattern in _NOT_MODELS)
    ]
    return _open_files(path, chosen) if chosen else None


def _open_subdirectories(path: Path) -> MultiFileReader:
    stored: dict[str, TensorInfo] = {}
    ignored: dict[str, str] = {}
    closed: dict[str, str] = {}
    for folder in _entries(path):
        try:
            reader = _open_own_files(folder) if folder.is_dir() else None
        except PermissionError as error:
            closed[f"{folder.name}/"] = f"folder that cannot be read ({reason_of(error)})"
            continue
        if reader is None:
            continue
        with reader:
            stored |= {f"{folder.name}/{name}": info for name, info in reader.stored.items()}
            ignored |= {f"{folder.name}/{name}": what for name, what in reader.ignored.items()}
    if not stored and not ignored:
        looked_for = ", ".join(f"*{suffix}" for suffix in (SAFETENSORS_SUFFIX, *TORCH_SUFFIXES, *INDEX_SUFFIXES))
        raise CheckpointError(
            f"{path}: no checkpoint among its {len(_entries(path))} files and folders; looked for {looked_for}, "
            f"other than {', '.join(_NOT_MODELS)}, and for folders with them"
            + (f"; {len(closed)} folders cannot be read, {next(iter(closed))} among them" if closed else "")
        )
    return MultiFileReader(path, stored, ignored | closed)


def _entries(path: Path) -> list[Path]:
    return sorted(entry for entry in path.iterdir() if not entry.name.startswith("."))


def _find_index(files: list[Path], suffix: str, preferred: str) -> Path | None:
    found = [file for file in files if file.name.endswith(suffix)]
    named = [file for file in found if file.name == preferred + suffix]
    return (named or found)[0] if named or len(found) == 1 else None


def _open_files(path: Path, files: list[Path]) -> MultiFileReader:
    tensors, ignored = list_files(files)
    stored = {info.name: info for info in tensors}
    if len(stored) < len(tensors):
        names = {str(file): file.name for file in files}
        stored = {f"{names[info.file]}:{info.name}": info for info in tensors}
    return MultiFileReader(path, stored, ignored)
