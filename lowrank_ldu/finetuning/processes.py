"""Know the processes that train together."""

from __future__ import annotations

import os

from lowrank_ldu.finetuning.extra import require


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
