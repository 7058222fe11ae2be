"""Load tasks that put a label or a number to a text or two."""

from __future__ import annotations

from math import isfinite
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lowrank_ldu.errors import OptionError
from lowrank_ldu.finetuning.extra import require
from lowrank_ldu.finetuning.tasks.classifiers import classifier_on_meta, load_classifier, with_head
from lowrank_ldu.finetuning.tasks.data_files import (
    LIMITS,
    data_digest,
    limit_of,
    open_splits,
    random_part,
    warn_of_one_label,
)
from lowrank_ldu.finetuning.tasks.metrics import classification_metrics, regression_metrics
from lowrank_ldu.finetuning.tasks.sentiment import ARCHIVE, HOW, snippet_splits
from lowrank_ldu.finetuning.tasks.task import LoadedTask
from lowrank_ldu.finetuning.tasks.text_tasks import TEXT_TASKS, TextTask
from lowrank_ldu.validation import shown

if TYPE_CHECKING:
    from collections.abc import Mapping

    from lowrank_ldu.finetuning.configuration import RunConfig
    from lowrank_ldu.finetuning.tasks.meta_model import MetaModel

_LABEL = "label"
_MODEL = "AutoModelForSequenceClassification"
_SHOWN_LABELS = 6


class TextClassification:
    """Offer the tasks of GLUE, and the sentiment of snippets."""

    TASKS: Mapping[str, TextTask] = TEXT_TASKS
    OPTIONS: Mapping[str, int | None] = {"max_length": 128, **LIMITS}

    def checked_options(self, given: Mapping[str, Any]) -> dict[str, Any]:
        """Check its own options, and fill in the defaults."""
        checked = {**self.OPTIONS, **given}
        for name, value in checked.items():
            if value is None and self.OPTIONS[name] is None:
                continue
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise OptionError(f"{name} is {shown(value)}; accepted: an integer from 1 on")
        return checked

    def meta_model(self, config: RunConfig, *, download: bool) -> MetaModel | None:
        """Build the model without numbers; see `Kind.meta_model`."""
        return classifier_on_meta(config, _MODEL, download=download)

    def load(self, config: RunConfig) -> LoadedTask:
        """Load the model and the data of a run."""
        task, options = self.TASKS[config.task], config.task_options
        columns = (*task.columns, _LABEL)
        splits = {
            name: _labeled(name, _part(_checked(name, rows, columns), columns, limit_of(name, options)), task)
            for name, rows in _open(config, task).items()
        }
        if task.labels is not None:
            warn_of_one_label({name: rows[_LABEL] for name, rows in splits.items()}, task.labels)
        transformers = require("transformers")
        model, tokenizer = load_classifier(
            config,
            getattr(transformers, _MODEL),
            lambda: transformers.AutoTokenizer.from_pretrained(config.model),
            task.labels,
        )
        _check_length(model, options["max_length"])
        # Evaluated batches are of like lengths: there is less padding.
        splits = {name: rows if name == "train" else _by_length(rows, task.columns) for name, rows in splits.items()}
        tokenized = {name: _tokenized(rows, tokenizer, task, options["max_length"]) for name, rows in splits.items()}
        metrics = regression_metrics if task.labels is None else classification_metrics
        return LoadedTask(
            model=model,
            head=with_head(config, model).head,
            task_type="SEQ_CLS",
            train=tokenized.pop("train"),
            validation=tokenized.pop(task.validation),
            others=tokenized,
            collator=require("transformers").DataCollatorWithPadding(tokenizer),
            compute_metrics=metrics(task.metrics),
            metric=task.metrics[0],
            data_digest=data_digest(splits, columns),
        )


def _open(config: RunConfig, task: TextTask) -> Mapping[str, Any]:
    if task.snippets is not None:
        if config.data is None:
            raise OptionError(f"data is not given; accepted: --data {ARCHIVE}, from {HOW}")
        columns = snippet_splits(Path(config.data), task.snippets, polarity=task.labels is not None)
        return {split: require("datasets").Dataset.from_dict(each) for split, each in columns.items()}
    if config.data is None:
        raise OptionError("data is not given; accepted: --data with a folder or an id on the hub")
    return open_splits(config.data, config.task, ("train", task.validation, *task.others), task.columns)


def _checked(split: str, rows: Any, columns: tuple[str, ...]) -> Any:
    """Refuse rows without a column, or without a text or a label."""
    missing = [column for column in columns if column not in rows.column_names]
    if missing:
        raise OptionError(
            f"split {split!r} has no column {', '.join(missing)}, but {', '.join(rows.column_names)}; accepted: "
            f"{', '.join(columns)}"
        )
    for column in columns:
        accepted = "a label" if column == _LABEL else "text"
        for number, value in enumerate(rows[column][:], 1):
            if value is None or (column != _LABEL and not isinstance(value, str)):
                raise OptionError(f"split {split!r}: {column} of row {number} is {shown(value)}; accepted: {accepted}")
    return rows


def _part(rows: Any, columns: tuple[str, ...], limit: int | None) -> Any:
    """Keep the columns of the task, and as many rows as are asked for."""
    return random_part(rows.select_columns(list(columns)), limit)


def _labeled(split: str, rows: Any, task: TextTask) -> Any:
    """Give the labels their numbers, and refuse others."""
    given = rows[_LABEL][:]
    if task.labels is None:
        wrong = [
            each for each in given if isinstance(each, bool) or not isinstance(each, int | float) or not isfinite(each)
        ]
        if wrong:
            raise OptionError(f"split {split!r} has label {shown(wrong[0])}; accepted: finite numbers")
        return rows.remove_columns(_LABEL).add_column(_LABEL, [float(each) for each in given])
    names = getattr(rows.features[_LABEL], "names", None)
    numbers = {name: number for number, name in enumerate(task.labels)}
    # Numbers of a data set count in its own order of names.
    places = {number: numbers.get(name) for number, name in enumerate(names or task.labels)} | numbers
    labels = [places.get(each) if type(each) in {int, float, str} else None for each in given]
    if None in labels:
        accepted = ", ".join(f"{number} ({name})" for name, number in numbers.items())
        found = sorted({shown(names[each] if names and 0 <= each < len(names) else each) for each in given})
        more = ", ..." if len(found) > _SHOWN_LABELS else ""
        raise OptionError(
            f"split {split!r} has labels {', '.join(found[:_SHOWN_LABELS])}{more}; accepted by the head: {accepted}"
        )
    return rows.remove_columns(_LABEL).add_column(_LABEL, labels)


def _check_length(model: Any, length: int) -> None:
    """Refuse texts that are longer than a model's positions."""
    embeddings = getattr(getattr(model.base_model, "embeddings", None), "position_embeddings", None)
    if embeddings is None:
        return
    padding = getattr(embeddings, "padding_idx", None)
    # RoBERTa counts from the place after the padding's.
    longest = embeddings.num_embeddings - (0 if padding is None else padding + 1)
    if length > longest:
        raise OptionError(f"max_length is {length}; accepted by the model: 1 to {longest}")


def _tokenized(rows: Any, tokenizer: Any, task: TextTask, length: int) -> Any:
    def tokens(batch: Mapping[str, Any]) -> dict[str, Any]:
        encoded = tokenizer(*(batch[column] for column in task.columns), truncation=True, max_length=length)
        return {**encoded, "labels": batch[_LABEL]}

    # Nothing is left in a cache: it takes seconds, and a changed tokenizer cannot be overlooked.
    return rows.map(tokens, batched=True, remove_columns=rows.column_names, keep_in_memory=True)


def _by_length(rows: Any, columns: tuple[str, ...]) -> Any:
    """Sort rows by their characters: the order is the same with any tokenizer and cut."""
    lengths = [sum(map(len, texts)) for texts in zip(*(rows[column][:] for column in columns), strict=True)]
    return rows.select(sorted(range(len(lengths)), key=lengths.__getitem__))
