"""Open the splits of a data set, from the hub or from disk."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lowrank_ldu.errors import OptionError
from lowrank_ldu.finetuning.extra import require

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

_SUFFIXES = (".csv", ".json", ".jsonl")
_ROWS = 1000


def open_splits(data: str, task: str, splits: Sequence[str], texts: Sequence[str]) -> dict[str, Any]:
    """Open the splits of a task that are needed.

    Parameters
    ----------
    data : str
        Id on the Hugging Face hub, where `task` is the name of a configuration. Or a folder: one that datasets saved by
        `save_to_disk`, or with SPLIT.csv or SPLIT.json (a line for each row), or with such a folder for each task.
    task : str
    splits : sequence of str
    texts : sequence of str
        Columns of text, which stay text where files leave it open.

    Returns
    -------
    dict
        Split to datasets.Dataset.

    Raises
    ------
    OptionError
        It cannot be opened, or a split is not there or empty.
    """
    path = Path(data)
    if path.is_dir():
        folder = path / task if (path / task).is_dir() else path
        found = _from_folder(folder, splits, texts)
        where = str(folder)
    elif path.exists():
        raise OptionError(f"data is {data}, a file; accepted: a folder of the task's splits, or an id on the hub")
    else:
        found, where = _from_hub(data, task), data
    for split in splits:
        if split not in found:
            raise OptionError(f"{where}: has no split {split!r}, but {', '.join(map(repr, found)) or 'none'}")
        if len(found[split]) == 0:
            raise OptionError(f"{where}: split {split!r} is empty; accepted: one row at least")
    return {split: found[split] for split in splits}


def _from_folder(folder: Path, splits: Sequence[str], texts: Sequence[str]) -> Mapping[str, Any]:
    datasets = require("datasets")
    if (folder / "dataset_dict.json").is_file():
        return {split: _saved(folder / split) for split in _saved_splits(folder)}
    files = {split: _file_of(folder, split) for split in splits}
    return {split: datasets.Dataset(_table(file, texts)) for split, file in files.items() if file is not None}


def _saved_splits(folder: Path) -> list[str]:
    return sorted(each.name for each in folder.iterdir() if (each / "dataset_info.json").is_file())


def _saved(folder: Path) -> Any:
    """Read a split that datasets saved."""
    datasets = require("datasets")
    try:
        return datasets.load_from_disk(str(folder))
    except IndexError:  # of a split without rows
        return datasets.Dataset.from_dict({})
    except (OSError, ValueError) as error:
        raise OptionError(f"{folder}: cannot be read by datasets ({error})") from error


def _file_of(folder: Path, split: str) -> Path | None:
    return next((path for suffix in _SUFFIXES if (path := folder / f"{split}{suffix}").is_file()), None)


def _table(file: Path, texts: Sequence[str]) -> Any:
    """Read a file of rows, without a copy in a cache."""
    pyarrow = require("pyarrow")
    try:
        if file.suffix == ".csv":
            csv = require("pyarrow.csv")
            return csv.read_csv(
                file,
                parse_options=csv.ParseOptions(newlines_in_values=True),
                convert_options=csv.ConvertOptions(column_types=dict.fromkeys(texts, pyarrow.string())),
            )
        return require("pyarrow.json").read_json(file)
    except (OSError, pyarrow.ArrowException) as error:
        kind = "CSV" if file.suffix == ".csv" else "JSON lines"
        raise OptionError(f"{file}: cannot be read as {kind} ({error})") from error


def _from_hub(data: str, task: str) -> Mapping[str, Any]:
    try:
        loaded: Mapping[str, Any] = require("datasets").load_dataset(data, task)
    except (OSError, ValueError, RuntimeError) as error:
        reason = " ".join(str(error).split())
        raise OptionError(
            f"data is {data!r}: neither a folder nor a set that the hub gives ({reason}); accepted: a folder, or an id"
        ) from error
    return loaded


def data_digest(splits: Mapping[str, Any], columns: Sequence[str]) -> str:
    """Return the sha256 of some columns of all rows."""
    digest = hashlib.sha256()
    for name, rows in splits.items():
        digest.update(f"{name} {len(rows)} {columns}".encode())
        for start in range(0, len(rows), _ROWS):
            batch = rows[start : start + _ROWS]
            digest.update(repr([batch[column] for column in columns]).encode("utf-8", "surrogatepass"))
    return digest.hexdigest()
