"""Open labeled images: from the hub, from disk, or the digits."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from lowrank_ldu.errors import OptionError
from lowrank_ldu.finetuning.digits import DEFAULT_SHIFT, digits_splits
from lowrank_ldu.finetuning.extra import require
from lowrank_ldu.finetuning.tasks.data_files import (
    get_split,
    limit_of,
    open_data,
    random_part,
    saved_splits,
    warn_of_one_label,
)
from lowrank_ldu.validation import shown

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from lowrank_ldu.finetuning.configuration import RunConfig
    from lowrank_ldu.finetuning.tasks.image_tasks import ImageTask

IMAGE, LABEL = "image", "label"
# As imagefolder and most sets on the hub name it.
_VALIDATION = ("validation", "val", "valid")
_TEST = "test"
_SHOWN_LABELS = 6


def open_images(config: RunConfig, task: ImageTask) -> tuple[dict[str, Any], tuple[str, ...]]:
    """Open the splits of a task of images.

    Parameters
    ----------
    config : RunConfig
    task : ImageTask

    Returns
    -------
    splits : dict
        "train", "validation" and, where there is one, "test" to datasets.Dataset, with the encoded image in column
        "image" and the number of its label in column "label".
    names : tuple of str
        Of the labels, in the order of their numbers.

    Raises
    ------
    OptionError
        The data cannot be opened, or lack a split or a column, or have labels that do not fit.
    """
    options = config.task_options
    found, where = _found(config, task)
    given = {
        role: _columns(get_split(found, name, where), name, task, options)
        for role, name in _split_names(found, options).items()
    }
    names = _label_names(given["train"], config.task, task)
    splits = {role: _numbered(role, rows, names) for role, rows in given.items()}
    if "validation" not in splits:
        splits |= _parted(splits["train"], options["validation_fraction"])
    splits = {role: random_part(rows, limit_of(role, options)) for role, rows in splits.items()}
    texts = tuple(str(name) for name in names)
    warn_of_one_label({role: rows[LABEL] for role, rows in splits.items()}, texts)
    return splits, texts


def _found(config: RunConfig, task: ImageTask) -> tuple[Mapping[str, Any], str]:
    rendering = config.task_options["rendering"]
    if task.embedded:
        if config.data is not None:
            raise OptionError(f"data is {config.data!r}; accepted for {config.task}: none, they come with scikit-learn")
        return digits_splits(rendering or DEFAULT_SHIFT), config.task
    if rendering is not None:
        raise OptionError(f"rendering is {rendering!r} with task {config.task!r}; accepted: with digits alone")
    if config.data is None:
        raise OptionError("data is not given; accepted: --data with a folder or an id on the hub")
    return open_data(config.data, _from_folder, None), config.data


def _from_folder(folder: Path) -> Mapping[str, Any]:
    saved = saved_splits(folder)
    if saved is not None:
        return saved
    datasets = require("datasets")
    try:
        found: Mapping[str, Any] = datasets.load_dataset("imagefolder", data_dir=str(folder))
    except (OSError, ValueError, RuntimeError, datasets.exceptions.DatasetsError) as error:
        reason = " ".join(str(error).split())
        raise OptionError(
            f"{folder}: cannot be read as images ({reason}); accepted: SPLIT/LABEL/IMAGE, or what save_to_disk wrote"
        ) from error
    return found


def _split_names(found: Mapping[str, Any], options: Mapping[str, Any]) -> dict[str, str]:
    """Return the name of each split that the data have or should have."""
    train, validation, test = (options[f"{role}_split"] for role in ("train", "validation", "test"))
    names = {"train": train or "train"}
    validation = validation or next((name for name in _VALIDATION if name in found), None)
    if validation is not None:
        names["validation"] = validation
    # A set that has been chosen on is no test any more.
    test = test or (_TEST if _TEST in found and validation != _TEST else None)
    if test is not None:
        names["test"] = test
    if len(set(names.values())) < len(names):
        listed = ", ".join(f"{role}_split {name!r}" for role, name in names.items())
        raise OptionError(f"{listed}: a split is there twice; accepted: different ones")
    return names


def _columns(rows: Any, split: str, task: ImageTask, options: Mapping[str, Any]) -> Any:
    """Keep image, still encoded, and label, by these names."""
    datasets = require("datasets")
    present = rows.column_names
    images = [name for name, feature in rows.features.items() if isinstance(feature, datasets.Image)]
    image, label = options["image_column"], options["label_column"]
    if image is None and len(images) == 1:
        image = images[0]
    if image not in present:
        found = "no column of images" if image is None else f"no column {image}"
        if image is None and images:
            found = f"{len(images)} columns of images"
        raise OptionError(
            f"split {split!r} has {found}, but {', '.join(present)}; accepted: image_column with one of these"
        )
    label = label or next((name for name in task.label_columns if name in present), task.label_columns[0])
    if label not in present:
        raise OptionError(
            f"split {split!r} has no column {label}, but {', '.join(present)}; accepted: label_column with one of these"
        )
    rows = rows.select_columns([image, label])
    try:
        rows = rows.cast_column(image, datasets.Image(decode=False))
    except (TypeError, ValueError, require("pyarrow").ArrowException) as error:
        raise OptionError(f"split {split!r}: column {image} holds no images; accepted: encoded images") from error
    return rows.rename_columns({image: IMAGE, label: LABEL} if (image, label) != (IMAGE, LABEL) else {})


def _label_names(rows: Any, name: str, task: ImageTask) -> Sequence[Any]:
    """Return what labels there are, in the order of their numbers."""
    names: Sequence[Any] | None = getattr(rows.features[LABEL], "names", None)
    if names is None:
        given = rows[LABEL][:]
        if {type(value) for value in given} not in ({int}, {str}):
            raise OptionError(f"split 'train' has labels {_listed(given)}; accepted: integers or strings")
        names = sorted(set(given))
    count = len(names)
    if count != (task.labels or count):
        raise OptionError(
            f"the data have {count} labels ({_listed(names)}); accepted for {name}: {task.labels}, and for images any"
        )
    if count < 2:
        raise OptionError(f"the data have {count} label ({_listed(names)}); accepted: two at least")
    return names


def _numbered(role: str, rows: Any, names: Sequence[Any]) -> Any:
    """Give the labels their numbers, and refuse others."""
    own = getattr(rows.features[LABEL], "names", None)
    places = {name: number for number, name in enumerate(names)}
    # Splits may number the same names in another order.
    numbers = places if own is None else {number: places.get(name) for number, name in enumerate(own)}
    given = rows[LABEL][:]
    labels = [numbers.get(each) if type(each) in {int, float, str} else None for each in given]
    if None in labels:
        wrong = [each for each, label in zip(given, labels, strict=True) if label is None]
        raise OptionError(f"the {role} images have labels {_listed(wrong)}; accepted: {_listed(names)}")
    return rows.remove_columns(LABEL).add_column(LABEL, labels)


def _parted(rows: Any, fraction: float) -> dict[str, Any]:
    """Take a random part of the training images for validation, the same for every seed of a run."""
    count = max(round(fraction * len(rows)), 1)
    if count >= len(rows):
        raise OptionError(
            f"validation_fraction is {fraction} of {len(rows)} training images; accepted: one that leaves some to train"
        )
    # Not train_test_split, which keeps its indices on disk even where it is told not to.
    order = np.random.default_rng(0).permutation(len(rows))
    parts = {"train": order[count:], "validation": order[:count]}
    return {name: rows.select(np.sort(places), keep_in_memory=True) for name, places in parts.items()}


def _listed(values: Any) -> str:
    found = list(dict.fromkeys(shown(value) for value in values))
    return ", ".join(found[:_SHOWN_LABELS]) + (", ..." if len(found) > _SHOWN_LABELS else "")
