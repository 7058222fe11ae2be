"""Open folders and indexes of shards: tensors spread over several files."""

from __future__ import annotations

from dataclasses import replace
from fnmatch import fnmatch
from pathlib import Path, PureWindowsPath
from typing import TYPE_CHECKING

from lowrank_ldu.checkpoints.formats import SAFETENSORS_SUFFIX, TORCH_SUFFIXES, open_file
from lowrank_ldu.checkpoints.formats.lora_folder import LoraReader, lora_config
from lowrank_ldu.checkpoints.json_file import read_json
from lowrank_ldu.checkpoints.libraries import reason_of
from lowrank_ldu.checkpoints.reader import CheckpointReader
from lowrank_ldu.errors import CheckpointError
from lowrank_ldu.untrusted import LISTING

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    import torch

    from lowrank_ldu.checkpoints.reader import TensorInfo


class MultiFileReader(CheckpointReader):
    """Reader of several files, of which it has at most one open.

    Parameters
    ----------
    path : pathlib.Path
        What was opened: an index or a directory.
    stored : mapping of str to TensorInfo
        For every name the tensor that it stands for, as its own file lists it.
    ignored : mapping of str to str
        What the files hold besides plain tensors.

    Attributes
    ----------
    stored : dict of str to TensorInfo
        As given.
    """

    def __init__(self, path: Path, stored: Mapping[str, TensorInfo], ignored: Mapping[str, str]) -> None:
        super().__init__(path, (replace(info, name=name) for name, info in stored.items()), ignored)
        self.stored = dict(stored)
        self._file: CheckpointReader | None = None

    def _read(self, info: TensorInfo) -> torch.Tensor:
        stored = self.stored[info.name]
        if self._file is None or str(self._file.path) != stored.file:
            self._close_file()
            self._file = open_file(Path(stored.file))
        return self._file.load(stored.name)

    def _close_file(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None

    def close(self) -> None:
        """Close the file that is open, if one is."""
        super().close()
        self._close_file()


def list_files(files: Iterable[Path]) -> tuple[list[TensorInfo], dict[str, str]]:
    """Return the tensors of all files, and what else they hold under ``file name:name``, opening one after another."""
    tensors: list[TensorInfo] = []
    ignored: dict[str, str] = {}
    for file in files:
        with open_file(file) as reader:
            tensors += reader.tensors
            ignored |= {f"{file.name}:{name}": what for name, what in reader.ignored.items()}
    return tensors, ignored


INDEX_SUFFIXES = (".safetensors.index.json", ".bin.index.json")


def open_index(path: Path) -> MultiFileReader:
    """Open the checkpoint that an index describes.

    Parameters
    ----------
    path : pathlib.Path
        A JSON file with an object ``weight_map`` from the name of each tensor to the shard that holds it, a path
        relative to the folder of the index.

    Returns
    -------
    MultiFileReader
        The tensors that the index lists, shard by shard. Only headers have been read.

    Raises
    ------
    CheckpointError
        If the index is not such a file, if a shard is outside its folder, missing or damaged, or if a shard lacks a
        tensor that the index lists in it.
    """
    weight_map = _read_weight_map(path)
    shards = {shard: path.parent / shard for shard in weight_map.values()}
    for shard in shards:
        # Read with the rules of Windows, which know every separator and drive. Links are not followed: the cache of
        # the Hugging Face Hub is made of links that lead out of the folder.
        parsed = PureWindowsPath(shard)
        if parsed.anchor or ".." in parsed.parts or not parsed.parts:
            raise CheckpointError(f"{path}: shard {shard!r} is not a file inside the folder of the index")
    try:
        missing = [shard for shard, file in shards.items() if not file.is_file()]
    except OSError as error:
        raise CheckpointError(f"{path}: a shard cannot be looked up ({reason_of(error)})") from error
    if missing:
        raise CheckpointError(f"{path}: missing {len(missing)} of {len(shards)} shards: {_some(missing)}")
    tensors, ignored = list_files(shards.values())
    listed = {(str(shards[shard]), name) for name, shard in weight_map.items()}
    stored = {info.name: info for info in tensors if (info.file, info.name) in listed}
    absent = [f"{name!r} in {shard}" for name, shard in weight_map.items() if name not in stored]
    if absent:
        raise CheckpointError(f"{path}: lists tensors that the shards lack: {_some(absent)}")
    return MultiFileReader(path, stored, ignored)


def _some(names: list[str]) -> str:
    more = f", and {len(names) - 5} more" if len(names) > 5 else ""
    return f"{', '.join(names[:5])}{more}"


def _read_weight_map(path: Path) -> dict[str, str]:
    index = read_json(path, "JSON index", LISTING)
    weight_map = index.get("weight_map") if isinstance(index, dict) else None
    if not isinstance(weight_map, dict) or not all(isinstance(shard, str) for shard in weight_map.values()):
        raise CheckpointError(
            f"{path}: not an index of shards; accepted: a JSON object whose 'weight_map' is an object from tensor "
            "names to shard file names"
        )
    return weight_map


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
