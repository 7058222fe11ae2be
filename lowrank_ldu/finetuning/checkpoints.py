"""Tell whole checkpoints from those that a dead process left."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from typing import TYPE_CHECKING, Any

from lowrank_ldu.files import replace_file

if TYPE_CHECKING:
    from pathlib import Path

MARK = "whole.json"
STATE = "trainer_state.json"
_NAME = re.compile(r"checkpoint-(\d+)")


def step_of(checkpoint: Path) -> int:
    """Return the number of the step that a checkpoint was made after."""
    match = _NAME.fullmatch(checkpoint.name)
    if match is None:
        raise ValueError(f"{checkpoint}: is no name of a checkpoint; accepted: checkpoint-STEP")
    return int(match[1])


def mark_whole(checkpoint: Path) -> None:
    """Write what a checkpoint holds, when it holds all of it.

    A checkpoint without this mark, or with other files than it says, is never taken for a whole one: neither where a
    process was killed nor where a disk lost what was last written.

    Parameters
    ----------
    checkpoint : pathlib.Path
    """
    digests = {str(file.relative_to(checkpoint)): _digest(file) for file in _files(checkpoint)}
    replace_file(checkpoint / MARK, json.dumps(digests, indent=1).encode())


def unmark(checkpoint: Path) -> None:
    """Take the mark from a checkpoint that is to be written anew."""
    (checkpoint / MARK).unlink(missing_ok=True)


def is_whole(checkpoint: Path) -> bool:
    """Say whether a checkpoint holds what its mark says, and all of it."""
    try:
        digests = json.loads((checkpoint / MARK).read_bytes())
        return isinstance(digests, dict) and digests == {
            str(file.relative_to(checkpoint)): _digest(file) for file in _files(checkpoint)
        }
    except (OSError, ValueError):
        return False


def whole_checkpoints(folder: Path) -> list[Path]:
    """Return the whole checkpoints of a folder, earliest first."""
    return [each for each in _checkpoints(folder) if is_whole(each)]


def way_on(folder: Path) -> str:
    """Say what a stopped run can go on from."""
    if whole_checkpoints(folder):
        return "the checkpoints before are whole, and the same command resumes"
    return "there is no checkpoint yet, and the same command begins anew"


def remove_incomplete(folder: Path) -> None:
    """Remove the checkpoints of a folder that are not whole."""
    for each in _checkpoints(folder):
        if not is_whole(each):
            shutil.rmtree(each)


def keep_latest(folder: Path, number: int, best: int | None) -> None:
    """Remove the checkpoints of a folder but some.

    Parameters
    ----------
    folder : pathlib.Path
    number : int
        Of the latest ones, which are kept.
    best : int, optional
        Step of another one that is kept.
    """
    for each in _checkpoints(folder)[:-number]:
        if step_of(each) != best:
            # Without its mark first: half of it may be left if the process ends here.
            unmark(each)
            shutil.rmtree(each)


def trainer_state(checkpoint: Path) -> dict[str, Any]:
    """Return the Trainer's state of a checkpoint."""
    state: dict[str, Any] = json.loads((checkpoint / STATE).read_bytes())
    return state


def best_step(state: dict[str, Any], metric: str, *, greater: bool = True) -> int | None:
    """Return the step whose evaluation has the best metric.

    The first one of equals; None before the first evaluation. One before the first step has no checkpoint, and does not
    count.

    Parameters
    ----------
    state : dict
        Of the Trainer, with its "log_history".
    metric : str
    greater : bool
        Whether more of it is better.

    Examples
    --------
    >>> history = [{"step": step, "eval_f1": f1} for step, f1 in ((0, 0.8), (5, 0.5), (10, 0.7), (15, 0.7))]
    >>> best_step({"log_history": history}, "f1")
    10
    >>> best_step({"log_history": history}, "f1", greater=False)
    5
    """
    key, sign = f"eval_{metric}", 1 if greater else -1
    found = [(sign * line[key], -line["step"]) for line in state["log_history"] if key in line and line["step"]]
    return -max(found)[1] if found else None


def _checkpoints(folder: Path) -> list[Path]:
    if not folder.is_dir():
        return []
    return sorted((each for each in folder.iterdir() if each.is_dir() and _NAME.fullmatch(each.name)), key=step_of)


def _files(folder: Path) -> list[Path]:
    return sorted(file for file in folder.rglob("*") if file.is_file() and file.name != MARK)


def _digest(file: Path) -> str:
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()
