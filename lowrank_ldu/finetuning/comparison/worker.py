"""Train one run of a comparison, in a process of its own or not."""

from __future__ import annotations

import math
import os
import threading
from typing import TYPE_CHECKING

from lowrank_ldu.errors import DivergenceError
from lowrank_ldu.files import replace_file
from lowrank_ldu.finetuning.processes import is_first
from lowrank_ldu.finetuning.run_directory import NOT_EVALUATED, RunDirectory
from lowrank_ldu.finetuning.runner import train

if TYPE_CHECKING:
    from pathlib import Path

    from lowrank_ldu.finetuning.runs import Result, Run

FAILURE, FAILURE_OF_TESTS = "failure.txt", "failure-of-tests.txt"
_WATCH = "parent of a comparison"


def train_one(run: Run, heads: Path, tests: bool, report_to: str, threads: int | None) -> Result | str:
    """Train a run; a loss that is no number is an outcome, too.

    Parameters
    ----------
    run : Run
    heads : pathlib.Path
        As for `train`.
    tests : bool
    report_to : str
    threads : int, optional
        Of torch, in a process of its own.

    Returns
    -------
    Result or str
        What the run came to, or why it has failed.
    """
    import torch  # noqa: PLC0415  # a process of its own begins here

    if threads is not None:
        torch.set_num_threads(threads)
        _end_with_parent()
    directory = RunDirectory(run.folder)
    # That of the tests has no part in the choice of a setting.
    kept = FAILURE if directory.finished() is None else FAILURE_OF_TESTS
    if (tests or kept == FAILURE) and (run.folder / kept).is_file():
        return (run.folder / kept).read_text(encoding="utf-8")
    try:
        result = train(run, report_to=report_to, tests=tests, heads=heads)
    except DivergenceError as error:
        with directory.written():
            replace_file(run.folder / kept, str(error).encode())
        outcome: Result | str = str(error)
    else:
        outcome = result if math.isfinite(result.score) else f"the validation {result.metric} is {result.score}"
    # Those of all weights, with two moments each, would fill the disk; the adapter stays.
    if is_first():
        directory.remove_checkpoints(failed=isinstance(outcome, str))
    return outcome


def _end_with_parent() -> None:
    """End this process when the one that began it is gone.

    It would train on, and keep folders locked from the command that resumes.
    """
    parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            threading.Event().wait(1.0)
        os._exit(1)

    if not any(thread.name == _WATCH for thread in threading.enumerate()):
        threading.Thread(target=watch, name=_WATCH, daemon=True).start()


def is_there(run: Run, *, tests: bool) -> bool:
    """Say whether a run has an outcome, and its tests where they are asked for."""
    record = RunDirectory(run.folder).finished()
    if record is None:
        return (run.folder / FAILURE).is_file()
    return not (tests and record[NOT_EVALUATED]) or (run.folder / FAILURE_OF_TESTS).is_file()
