"""Change a model's config.json with its tensors."""

from __future__ import annotations

import copy
import re
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

_HEAD = re.compile(r"(.*\.)?(classifier|score|classifier\.out_proj|classification_head\.out_proj)\.weight")
_LABELED_TASKS = {"SEQ_CLS", "TOKEN_CLS"}
_TIE = "tie_word_embeddings"
_VOCABULARY = "vocab_size"
# Number of labels that transformers gives to a configuration without a list of labels.
_LABELS = 2


def is_tied(config: dict[str, Any]) -> bool:
    """Return whether output layer and embedding may be one tensor."""
    return any(part.get(_TIE) is not False for part in _parts(config) if part is config or _TIE in part)


def untied(config: dict[str, Any]) -> dict[str, Any]:
    """Return the configuration with an output layer of its own.

    The rest of the model is the same.
    """
    changed = copy.deepcopy(config)
    changed[_TIE] = False
    for part in _parts(changed):
        if _TIE in part:
            part[_TIE] = False
    return changed


def vocabulary(config: dict[str, Any]) -> int | None:
    """Return the number of tokens, or None.

    None where it is not given, or where several places give different numbers.
    """
    sizes = {part[_VOCABULARY] for part in _parts(config) if isinstance(part.get(_VOCABULARY), int)}
    return sizes.pop() if len(sizes) == 1 else None


def with_vocabulary(config: dict[str, Any], size: int) -> dict[str, Any]:
    """Return the configuration with another number of tokens.

    The rest of the model is the same.
    """
    changed = copy.deepcopy(config)
    for part in _parts(changed):
        if _VOCABULARY in part:
            part[_VOCABULARY] = size
    return changed


def labels_of(shapes: Mapping[str, tuple[int, ...]], task_type: str | None) -> int | None:
    """Return the number of labels of a trained head, or None.

    None where no tensor is known to be a head.

    Parameters
    ----------
    shapes : mapping of str to tuple of int
        Of the tensors that were trained whole.
    task_type : str or None
        Of PEFT's configuration.
    """
    # Adapters of `save_adapter` know no task.
    if task_type is not None and task_type not in _LABELED_TASKS:
        return None
    sizes = {shape[0] for name, shape in shapes.items() if len(shape) == 2 and _HEAD.fullmatch(name)}
    return sizes.pop() if len(sizes) == 1 else None


def with_labels(config: dict[str, Any], count: int) -> dict[str, Any]:
    """Return the configuration with another number of labels.

    They are numbered as transformers does if there were others before.
    """
    present = config.get("id2label")
    if count == (len(present) if isinstance(present, dict) else _LABELS):
        return config
    names = {str(index): f"LABEL_{index}" for index in range(count)}
    return config | {"id2label": names, "label2id": {name: int(index) for index, name in names.items()}}


def _parts(config: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Yield a configuration and those of the models in it.

    Such are `text_config` and the like.
    """
    yield config
    for key, value in config.items():
        if key.endswith("_config") and isinstance(value, dict):
            yield from _parts(value)
