"""Know the processes that train together."""

from __future__ import annotations

import os
from datetime import timedelta
from typing import TYPE_CHECKING, TypeVar

from lowrank_ldu.finetuning.extra import require

if TYPE_CHECKING:
    from collections.abc import Callable

_Found = TypeVar("_Found")
# The others would give up after the half hour, or less, that they have for a step.
_PATIENCE = timedelta(days=30)


def is_first() -> bool:
    """Say whether this process writes files and speaks.

    Launchers number the processes that they start: accelerate's, and torch's.
    """
    return os.environ.get("RANK", "0") == "0"


def wait_for_all() -> None:
    """Wait until all processes have come here.

    transformers' TrainingArguments have to be made before: they say how processes speak to each other.
    """
    require("accelerate").PartialState().wait_for_everyone()


def of_first(compute: Callable[[], _Found]) -> _Found:
    """Return what the first process computes, in all processes.

    The others wait, however long it takes. All have to come here, as to `wait_for_all`.

    Parameters
    ----------
    compute : callable
        compute(), what can be pickled.

    Returns
    -------
    object
    """
    from torch import distributed  # noqa: PLC0415  # slow to import

    if not (distributed.is_available() and distributed.is_initialized() and distributed.get_world_size() > 1):
        return compute()
    group = distributed.new_group(backend="gloo", timeout=_PATIENCE)
    found = [compute() if is_first() else None]
    distributed.broadcast_object_list(found, src=0, group=group)
    return found[0]  # type: ignore[return-value]
