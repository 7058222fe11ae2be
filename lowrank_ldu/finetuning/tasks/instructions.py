"""Open data of instructions and answers, and put them into templates."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lowrank_ldu.errors import OptionError
from lowrank_ldu.finetuning.extra import require
from lowrank_ldu.validation import shown

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

INSTRUCTION, INPUT, OUTPUT = "instruction", "input", "output"
COLUMNS = (INSTRUCTION, INPUT, OUTPUT)
TRAIN, VALIDATION = "train", "validation"
_SUFFIXES = (".json", ".jsonl")
# Of the rows that are taken: the same for every seed of a run.
_SEED = 0


@dataclass(frozen=True)
class Template:
    """Hold how an instruction becomes a prompt.

    Attributes
    ----------
    with_input, without_input : str
        With {instruction}, and with {input} where there is one.
    """

    with_input: str
    without_input: str

    def prompt(self, instruction: str, given: str) -> str:
        """Return the text before an answer.

        Parameters
        ----------
        instruction : str
        given : str
            What the instruction is about; empty where it says everything.

        Examples
        --------
        >>> Template("{instruction} ({input}): ", "{instruction}: ").prompt("Name a color", "")
        'Name a color: '
        """
        return (self.with_input if given else self.without_input).format(instruction=instruction, input=given)


_BEGIN = "Below is an instruction that describes a task"
_END = "Write a response that appropriately completes the request."
_INSTRUCTION, _INPUT, _RESPONSE = "### Instruction:\n{instruction}", "### Input:\n{input}", "### Response:\n"

# Of Stanford Alpaca.
TEMPLATES: Mapping[str, Template] = {
    "alpaca": Template(
        f"{_BEGIN}, paired with an input that provides further context. {_END}\n\n"
        f"{_INSTRUCTION}\n\n{_INPUT}\n\n{_RESPONSE}",
        f"{_BEGIN}. {_END}\n\n{_INSTRUCTION}\n\n{_RESPONSE}",
    )
}


def open_instructions(data: str, *, validation_rows: int, train_rows: int | None = None) -> dict[str, Any]:
    """Open instructions, with a part for validation.

    Parameters
    ----------
    data : str
        Id on the Hugging Face hub; a file .json (a list of objects) or .jsonl (an object in each line); or a folder
        that datasets saved by `save_to_disk`. Each row has an instruction, an input (empty, or null, if there is none)
        and an output.
    validation_rows : int
        Most rows of validation. They are taken out of the training rows at random where there is no such split.
    train_rows : int, optional
        Most rows of training, at random.

    Returns
    -------
    dict
        "train" and "validation" to datasets.Dataset. The same rows in every call.

    Raises
    ------
    OptionError
        The data cannot be opened, a column is missing or not text, or there are too few rows.
    """
    path = Path(data)
    found = _from_file(path) if path.is_file() else _from_folder(path) if path.is_dir() else _from_hub(data)
    if TRAIN not in found:
        raise OptionError(f"{data}: has no split {TRAIN!r}, but {', '.join(map(repr, found)) or 'none'}")
    splits = {name: _checked(rows, f"{data}, split {name!r}") for name, rows in found.items()}
    train, validation = splits[TRAIN], splits.get(VALIDATION)
    if validation is None:
        if len(train) <= validation_rows:
            raise OptionError(
                f"validation_rows is {validation_rows}, and {data} has {len(train)} rows and no split {VALIDATION!r}; "
                f"accepted: 1 to {len(train) - 1}"
            )
        order = train.shuffle(seed=_SEED, keep_in_memory=True)
        validation, train = order.select(range(validation_rows)), order.select(range(validation_rows, len(order)))
    return {TRAIN: _part(train, train_rows), VALIDATION: _part(validation, validation_rows)}


def _part(rows: Any, most: int | None) -> Any:
    if most is None or most >= len(rows):
        return rows
    return rows.shuffle(seed=_SEED, keep_in_memory=True).select(range(most))


def _from_file(path: Path) -> dict[str, Any]:
    if path.suffix not in _SUFFIXES:
        raise OptionError(f"data is {path}; accepted: a file {' or '.join(_SUFFIXES)}, a folder, or an id on the hub")
    try:
        text = path.read_text(encoding="utf-8")
        rows = json.loads(text or "[]") if path.suffix == ".json" else [json.loads(line) for line in _lines(text)]
    except (OSError, ValueError) as error:
        kind = "JSON" if path.suffix == ".json" else "JSON lines"
        raise OptionError(f"{path}: cannot be read as {kind} ({error})") from error
    if not isinstance(rows, list):
        raise OptionError(f"{path}: holds a {type(rows).__name__}; accepted: a list of objects with {_named(COLUMNS)}")
    for number, row in enumerate(rows, 1):
        names = list(row) if isinstance(row, dict) else []
        missing = [column for column in COLUMNS if column not in names]
        if missing:
            raise OptionError(
                f"{path}: row {number} has no {_named(missing)}, but {_named(names)}; accepted: all three"
            )
    return {TRAIN: {column: [row[column] for row in rows] for column in COLUMNS}}


def _lines(text: str) -> list[str]:
    # Lines of JSON end with a line feed alone; others may stand within strings.
    return [line for line in text.split("\n") if line.strip()]


def _from_folder(folder: Path) -> dict[str, Any]:
    datasets = require("datasets")
    try:
        loaded = datasets.load_from_disk(str(folder))
    except IndexError as error:  # of a split without rows
        raise OptionError(f"{folder}: has a split without rows; accepted: one row at least") from error
    except (OSError, ValueError) as error:
        raise OptionError(f"{folder}: is no folder that save_to_disk wrote ({error})") from error
    return dict(loaded) if isinstance(loaded, dict) else {TRAIN: loaded}


def _from_hub(data: str) -> dict[str, Any]:
    try:
        return dict(require("datasets").load_dataset(data))
    except (OSError, ValueError, RuntimeError) as error:
        reason = " ".join(str(error).split())
        raise OptionError(
            f"data is {data!r}: neither a file, nor a folder, nor a set that the hub gives ({reason}); accepted: one "
            "of them"
        ) from error


def _checked(rows: Any, where: str) -> Any:
    """Return the columns as text, and refuse what is none."""
    names = list(rows) if isinstance(rows, dict) else rows.column_names
    missing = [column for column in COLUMNS if column not in names]
    if missing:
        raise OptionError(f"{where}: has no column {_named(missing)}, but {_named(names)}; accepted: {_named(COLUMNS)}")
    columns = {column: list(rows[column]) for column in COLUMNS}
    if not columns[OUTPUT]:
        raise OptionError(f"{where}: has no rows; accepted: one row at least")
    columns[INPUT] = ["" if each is None else each for each in columns[INPUT]]
    for column, values in columns.items():
        wrong = next((number for number, each in enumerate(values, 1) if not isinstance(each, str)), None)
        if wrong is not None:
            raise OptionError(f"{where}: {column} of row {wrong} is {shown(values[wrong - 1])}; accepted: text")
    return require("datasets").Dataset.from_dict(columns)


def _named(names: Sequence[str]) -> str:
    return ", ".join(map(str, names)) or "none"
