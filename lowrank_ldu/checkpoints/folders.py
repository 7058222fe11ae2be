"""Open the checkpoint of a folder, or of an index of shards."""

from __future__ import annotations

from fnmatch import fnmatch
from pathlib import PureWindowsPath
from typing import TYPE_CHECKING

from lowrank_ldu.checkpoints.adapter_folder import LORA, adapter_config, adapter_method, method_in, why_no_weights
from lowrank_ldu.checkpoints.formats import SAFETENSORS_SUFFIX, TORCH_SUFFIXES
from lowrank_ldu.checkpoints.formats.lora_folder import LoraReader
from lowrank_ldu.checkpoints.multi_file import MultiFileReader, list_files
from lowrank_ldu.checkpoints.reader import Unread
from lowrank_ldu.checkpoints.remote.path import RemotePath
from lowrank_ldu.checkpoints.remote.web_files import WebFiles
from lowrank_ldu.checkpoints.safe_reading import read_json, reason_of
from lowrank_ldu.errors import CheckpointError
from lowrank_ldu.untrusted import LISTING
from lowrank_ldu.validation import shown

if TYPE_CHECKING:
    from collections.abc import Iterable

    from lowrank_ldu.checkpoints.reader import CheckpointReader, TensorInfo
    from lowrank_ldu.checkpoints.remote.path import Place

INDEX_SUFFIXES = (".safetensors.index.json", ".bin.index.json")


def open_index(path: Place) -> MultiFileReader:
    """Open the checkpoint that an index describes.

    Parameters
    ----------
    path : pathlib.Path or RemotePath
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
        if parsed.suffix == ".json":
            raise CheckpointError(f"{path}: shard {shard!r} has the unknown suffix '.json'; accepted: files of tensors")
    try:
        missing = [shard for shard, file in shards.items() if not file.is_file()]
    except OSError as error:
        raise CheckpointError(f"{path}: a shard cannot be looked up ({reason_of(error)})") from error
    if missing:
        raise CheckpointError(f"{path}: missing {len(missing)} of {len(shards)} shards: {_some(missing)}")
    # Shards may be called anything, where the index says of what format they are.
    suffix = SAFETENSORS_SUFFIX if path.name.lower().endswith(INDEX_SUFFIXES[0]) else ""
    tensors, ignored = list_files(shards.values(), suffix)
    listed = {(str(shards[shard]), name) for name, shard in weight_map.items()}
    stored = {info.name: info for info in tensors if (info.file, info.name) in listed}
    absent = [f"{name!r} in {shard}" for name, shard in weight_map.items() if name not in stored]
    if absent:
        raise CheckpointError(f"{path}: lists tensors that the shards lack: {_some(absent)}")
    return MultiFileReader(path, stored, ignored, tuple(shards.values()), suffix)


def _some(names: list[str]) -> str:
    more = f", and {len(names) - 5} more" if len(names) > 5 else ""
    return f"{', '.join(names[:5])}{more}"


def _read_weight_map(path: Place) -> dict[str, str]:
    index = read_json(path, "JSON index", LISTING)
    weight_map = index.get("weight_map") if isinstance(index, dict) else None
    if not isinstance(weight_map, dict) or not all(isinstance(shard, str) for shard in weight_map.values()):
        raise CheckpointError(
            f"{path}: not an index of shards; accepted: a JSON object whose 'weight_map' is an object from tensor "
            "names to shard file names"
        )
    return weight_map


# Names that transformers gives the weights of a model or their index, and PEFT those of an adapter.
_MODEL, _ADAPTER = "model.safetensors", "adapter_model."
# Files that training loops leave beside a model; none of them holds weights.
_NOT_MODELS = ("training_args.bin", "optimizer.*", "scheduler.*", "scaler.*", "rng_state*")


def open_directory(path: Place) -> CheckpointReader:
    """Open the checkpoint in a directory.

    The first of these that is there is read: the safetensors index, all safetensors files, the index of ``.bin``
    shards, all torch files that are not known to be something else than a model (an optimizer's state, say). An index
    counts if it is called ``model.safetensors.index.json`` or ``pytorch_model.bin.index.json``, or is the only one.
    If there is none, the same in each of its folders, as a diffusers pipeline has them: names of tensors are preceded
    by the folder's and a slash. Hidden files and folders are not looked at. A LoRA adapter that PEFT saved gives the
    updates that it makes (`LoraReader`); of adapters of other methods the tensors are listed, with `no_weights`.

    Parameters
    ----------
    path : pathlib.Path or RemotePath
        The directory. Of a web server, which lists none, files are known by the names that transformers and PEFT give.

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
        names = [entry.name for entry in path.iterdir()]
        config = None if _is_model(names) else adapter_config(path)
        reader = _open_own_files(path)
        if reader is None:
            reader = _open_subdirectories(path)
    except OSError as error:
        raise CheckpointError(f"{path}: the directory cannot be read ({reason_of(error)})") from error
    reader.directory = path
    if config is not None and config.get("peft_type") == LORA:
        return LoraReader(path, config, reader)
    reader.no_weights = why_no_weights(path, adapter_method(names, config))
    return reader


def _is_model(names: Iterable[str]) -> bool:
    """Return whether a directory's files hold a model's weights and no adapter's."""
    names = list(names)
    return any(name.startswith(_MODEL) for name in names) and not any(name.startswith(_ADAPTER) for name in names)


def _open_own_files(path: Place) -> MultiFileReader | None:
    """Return a reader of a directory's own checkpoint.

    None if the directory itself holds none.
    """
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


def _open_subdirectories(path: Place) -> MultiFileReader:
    stored: dict[str, TensorInfo] = {}
    ignored: dict[str, str] = {}
    closed: dict[str, str] = {}
    for folder in _entries(path):
        try:
            if folder.is_dir() and (method := method_in(folder)) is not None:
                ignored[f"{folder.name}/"] = Unread(
                    f"folder of an adapter of the method {shown(method)}: open it alone"
                )
                continue
            reader = _open_own_files(folder) if folder.is_dir() else None
        except PermissionError as error:
            closed[f"{folder.name}/"] = Unread(f"folder that cannot be read ({reason_of(error)})")
            continue
        if reader is None:
            continue
        with reader:
            stored |= {f"{folder.name}/{name}": info for name, info in reader.stored.items()}
            ignored |= {f"{folder.name}/{name}": what for name, what in reader.ignored.items()}
    if not stored and not ignored and isinstance(path, RemotePath):
        raise CheckpointError(
            f"{path}: no checkpoint is there; accepted: a {SAFETENSORS_SUFFIX} file, an index of shards, or a folder "
            f"(a web server lists no files: there the names {', '.join(WebFiles.names)} are looked for; "
            "a LoLDU adapter is read from this machine only)"
        )
    if not stored and not ignored:
        looked_for = ", ".join(f"*{suffix}" for suffix in (SAFETENSORS_SUFFIX, *TORCH_SUFFIXES, *INDEX_SUFFIXES))
        raise CheckpointError(
            f"{path}: no checkpoint among its {len(_entries(path))} files and folders; looked for {looked_for}, "
            f"other than {', '.join(_NOT_MODELS)}, and for folders with them"
            + (f"; {len(closed)} folders cannot be read, {next(iter(closed))} among them" if closed else "")
        )
    return MultiFileReader(path, stored, ignored | closed)


def _entries(path: Place) -> list[Place]:
    entries: Iterable[Place] = path.iterdir()
    return sorted((entry for entry in entries if not entry.name.startswith(".")), key=str)


def _find_index(files: list[Place], suffix: str, preferred: str) -> Place | None:
    found = [file for file in files if file.name.endswith(suffix)]
    named = [file for file in found if file.name == preferred + suffix]
    return (named or found)[0] if named or len(found) == 1 else None


def _open_files(path: Place, files: list[Place]) -> MultiFileReader:
    tensors, ignored = list_files(files)
    stored = {info.name: info for info in tensors}
    if len(stored) < len(tensors):
        names = {str(file): file.name for file in files}
        stored = {f"{names[info.file]}:{info.name}": info for info in tensors}
    return MultiFileReader(path, stored, ignored, files)
