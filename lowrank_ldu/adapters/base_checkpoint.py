"""The base model's weights on disk, one tensor at a time."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from safetensors import SafetensorError, safe_open

from lowrank_ldu.adapters.input_files import check_regular, checked_path, one_line, read_json
from lowrank_ldu.checkpoints.writer import entries_of, read_entry, torch_dtype
from lowrank_ldu.errors import AdapterError
from lowrank_ldu.validation import shown

if TYPE_CHECKING:
    import os
    from collections.abc import Iterator

    import torch
    from torch import Tensor

    from lowrank_ldu.checkpoints.writer import Entry

INDEX_SUFFIX = ".safetensors.index.json"


class BaseCheckpoint:
    """The safetensors files of a model: names without reading data, one tensor at a time.

    Parameters
    ----------
    path : path
        A .safetensors file, an index of shards, or a folder with one or the other.

    Attributes
    ----------
    root : Path
        Folder of the files.
    files : dict of str to list of str
        File name to the names of its tensors, in the file's order.

    Raises
    ------
    AdapterError
        There is no such file, it is not what it should be, or an index names a file outside its folder.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = checked_path(path)
        main = _main_file(self.path)
        self.root = main.parent
        self.index = main if main.name.endswith(INDEX_SUFFIX) else None
        names = [main.name] if self.index is None else _shards(main)
        self._known: dict[str, dict[str, Entry]] = {}
        self.files = {name: self._names(name) for name in names}
        self._where = {tensor: name for name, tensors in self.files.items() for tensor in tensors}

    def __iter__(self) -> Iterator[str]:
        return iter(self._where)

    def __contains__(self, name: object) -> bool:
        return name in self._where

    def tensor(self, name: str) -> Tensor:
        """Read one tensor; a file that has become shorter is an error, where a mapped one would end the process."""
        return read_entry(self._entries(self._file_of(name))[name])

    def shape(self, name: str) -> tuple[int, ...]:
        """Return a tensor's shape, without reading it."""
        return self._entries(self._file_of(name))[name].shape

    def dtype(self, name: str) -> torch.dtype:
        """Return a tensor's dtype, without reading it."""
        return torch_dtype(self._entries(self._file_of(name))[name].dtype)

    def _file_of(self, name: str) -> str:
        if not isinstance(name, str) or name not in self._where:
            raise AdapterError(
                f"{self.path}: has no tensor {shown(name)}; accepted: one of its {len(self._where)} names"
            )
        return self._where[name]

    def _entries(self, file_name: str) -> dict[str, Entry]:
        if file_name not in self._known:
            self._known[file_name] = entries_of(self.root / file_name)
        return self._known[file_name]

    def _names(self, file_name: str) -> list[str]:
        with self._open(file_name) as file:
            return list(file.keys())

    def _open(self, file_name: str) -> safe_open:
        path = self.root / file_name
        check_regular(path, "the safetensors files of a base model")
        try:
            return safe_open(path, framework="pt")
        except (OSError, SafetensorError, ValueError) as error:
            raise AdapterError(f"{path}: not a safetensors file ({one_line(error)})") from error


def _main_file(path: Path) -> Path:
    try:
        return _found_file(path)
    except (OSError, ValueError) as error:
        if isinstance(error, AdapterError):
            raise
        raise AdapterError(f"{path}: cannot be looked up ({one_line(error)})") from error


def _found_file(path: Path) -> Path:
    if path.is_dir():
        indices, files = sorted(path.glob(f"*{INDEX_SUFFIX}")), sorted(path.glob("*.safetensors"))
        if len(indices) == 1:
            return indices[0]
        if len(files) == 1:
            return files[0]
        found = ", ".join(file.name for file in [*indices, *files]) or "none"
        raise AdapterError(f"{path}: accepted: a folder with one safetensors file or one index of them; found: {found}")
    if not path.is_file():
        raise AdapterError(
            f"{path}: no such file or folder; accepted: a base model's safetensors file, index or folder"
        )
    if not path.name.endswith((".safetensors", INDEX_SUFFIX)):
        raise AdapterError(f"{path}: accepted: a .safetensors file, an index of shards, or a folder with one of them")
    return path


def _shards(index: Path) -> list[str]:
    content, _ = read_json(index, "an index of safetensors shards")
    try:
        names = set(content["weight_map"].values())
    except (KeyError, AttributeError, TypeError) as error:
        raise AdapterError(f"{index}: not an index of safetensors shards ({one_line(error)})") from error
    if not names:
        raise AdapterError(f"{index}: not an index of safetensors shards (it names none)")
    for name in names:
        if not isinstance(name, str) or Path(name).name != name:
            raise AdapterError(f"{index}: names the shard {name!r}; accepted: files in the folder of the index")
    return sorted(names)
