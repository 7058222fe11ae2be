"""Open the splits of a data set, from the hub or from disk."""

from __future__ import annotations

import hashlib
import warnings
from collections import Counter
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from lowrank_ldu.errors import OptionError
from lowrank_ldu.finetuning.extra import require
from lowrank_ldu.finetuning.processes import is_first

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

_SUFFIXES = (".csv", ".json", ".jsonl")
_ROWS = 1000
# Options of texts and images, as transformers' examples call them.
LIMITS: Mapping[str, int | None] = MappingProxyType(
    dict.fromkeys(("max_train_samples", "max_eval_samples", "max_predict_samples"))
)


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
    place = str(path / task) if (path / task).is_dir() else data
    found = open_data(place, lambda folder: _from_folder(folder, splits, texts), task)
    return {split: get_split(found, split, place) for split in splits}


def open_data(
    data: str, read_folder: Callable[[Path], Mapping[str, Any]], configuration: str | None
) -> Mapping[str, Any]:
    """Open all splits of a folder, or of a set on the hub.

    Parameters
    ----------
    data : str
    read_folder : callable
        From a folder to its splits.
    configuration : str, optional
        Name of a configuration of the set on the hub.

    Returns
    -------
    mapping
        Split to datasets.Dataset.

    Raises
    ------
    OptionError
        It cannot be opened.
    """
    path = Path(data)
    if path.is_dir():
        return read_folder(path)
    if path.exists():
        raise OptionError(f"data is {data}, a file; accepted: a folder of the task's splits, or an id on the hub")
    return _from_hub(data, configuration)


def get_split(found: Mapping[str, Any], split: str, where: str) -> Any:
    """Return a split that has to be there, with rows.

    Raises
    ------
    OptionError
        It is not, or is empty.
    """
    if split not in found:
        raise OptionError(f"{where}: has no split {split!r}, but {', '.join(map(repr, found)) or 'none'}")
    if len(found[split]) == 0:
        raise OptionError(f"{where}: split {split!r} is empty; accepted: one row at least")
    return found[split]


def limit_of(split: str, options: Mapping[str, Any]) -> int | None:
    """Return how many rows of a split are asked for.

    Those that training is not chosen by are tests.
    """
    name = "max_eval_samples" if split.startswith("validation") else "max_predict_samples"
    limit: int | None = options["max_train_samples" if split == "train" else name]
    return limit


def random_part(rows: Any, limit: int | None) -> Any:
    """Return as many rows as are asked for, at random.

    Rows may be sorted by their label. The part is the same for every seed of a run.
    """
    if limit is None or limit >= len(rows):
        return rows
    return rows.shuffle(seed=0, keep_in_memory=True).select(range(limit))


def saved_splits(folder: Path) -> dict[str, Any] | None:
    """Return the splits that datasets saved by `save_to_disk`, or None where it saved none."""
    if (folder / "dataset_dict.json").is_file():
        names = sorted(each.name for each in folder.iterdir() if (each / "dataset_info.json").is_file())
        return {name: _saved(folder / name) for name in names}
    return None


def _from_folder(folder: Path, splits: Sequence[str], texts: Sequence[str]) -> Mapping[str, Any]:
    datasets = require("datasets")
    saved = saved_splits(folder)
    if saved is not None:
        return saved
    files = {split: _file_of(folder, split) for split in splits}
    return {split: datasets.Dataset(_table(file, texts)) for split, file in files.items() if file is not None}


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
        if not file.read_bytes().strip():
            raise OptionError(f"{file}: split {file.stem!r} is empty; accepted: one row at least") from error
        kind = "CSV" if file.suffix == ".csv" else "JSON lines"
        raise OptionError(f"{file}: cannot be read as {kind} ({error})") from error


def _from_hub(data: str, configuration: str | None) -> Mapping[str, Any]:
    try:
        loaded: Mapping[str, Any] = require("datasets").load_dataset(data, configuration)
    except (OSError, ValueError, RuntimeError) as error:
        reason = " ".join(str(error).split())
        raise OptionError(
            f"data is {data!r}: neither a folder nor a set that the hub gives ({reason}); accepted: a folder, or an id"
        ) from error
    return loaded


def warn_of_one_label(splits: Mapping[str, Iterable[int]], names: Sequence[str]) -> None:
    """Warn of splits whose rows all have the same label.

    Parameters
    ----------
    splits : mapping
        Split to the numbers of its labels.
    names : sequence of str
        Of the labels.

    Warns
    -----
    UserWarning
        For each such split.
    """
    for split, labels in splits.items():
        found = Counter(labels)
        ((number, rows),) = found.most_common(1)
        # Of a single row that is plain.
        if len(found) == 1 and rows > 1 and is_first():
            warnings.warn(
                f"all {rows} rows of split {split!r} have the label {names[number]!r}: "
                + ("there is nothing to learn" if split == "train" else "its metrics say nothing"),
                stacklevel=2,
            )


def data_digest(splits: Mapping[str, Any], columns: Sequence[str]) -> str:
    """Return the sha256 of some columns of all rows."""
    digest = hashlib.sha256()
    for name, rows in splits.items():
        digest.update(f"{name} {len(rows)} {columns}".encode())
        for start in range(0, len(rows), _ROWS):
            batch = rows[start : start + _ROWS]
            digest.update(repr([batch[column] for column in columns]).encode("utf-8", "surrogatepass"))
    return digest.hexdigest()
