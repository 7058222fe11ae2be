"""An index over shards: ``*.safetensors.index.json`` or ``*.bin.index.json``."""

from __future__ import annotations

from pathlib import PureWindowsPath
from typing import TYPE_CHECKING

from lowrank_ldu.analysis.readers.extra import reason_of
from lowrank_ldu.analysis.readers.json_file import read_json
from lowrank_ldu.analysis.readers.multi_file import MultiFileReader, list_files
from lowrank_ldu.errors import CheckpointError
from lowrank_ldu.untrusted import LISTING

if TYPE_CHECKING:
    from pathlib import Path

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
