"""Do what takes long: with an engine, and with a journal beside the report."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

from lowrank_ldu.cli.console import say
from lowrank_ldu.errors import ClusterError, NothingToAnalyzeError, NothingToCompareError, OutputError, RemoteError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from lowrank_ldu.analysis import Engine

# Stages before and after the work itself.
LOADING = "loading libraries"
WRITING = "writing the report"


@contextmanager
def journal_beside(out: Path, *, overwrite: bool) -> Iterator[Path]:
    """Give the journal of a run beside the folder of its report.

    It is this process's alone until the end, and removed if the body of the `with` statement comes to one: the report
    is written, or there is nothing to report. What stops it is told that `--resume` goes on.

    Raises
    ------
    OutputError
        The folder could not be written.
    JournalError
        Another process has the journal.
    """
    from lowrank_ldu.analysis import lock_journal  # noqa: PLC0415
    from lowrank_ldu.files import check_target  # noqa: PLC0415

    # Before the hours of work, not after them; and nothing is made yet that a kill would leave.
    check_target(out, overwrite=overwrite, otherwise="--overwrite")
    journal = out.absolute().with_name(f"{out.absolute().name}.journal")
    # Until the report is there: another process would find the journal complete, and write the same report.
    with lock_journal(journal):
        try:
            yield journal
        except (KeyboardInterrupt, SystemExit, OutputError, RemoteError, ClusterError):
            if journal.exists():
                say(f"{journal.name} has the results so far; --resume goes on from there", err=True)
            raise
        except (NothingToAnalyzeError, NothingToCompareError):
            journal.unlink(missing_ok=True)
            raise
        journal.unlink(missing_ok=True)


@contextmanager
def engine_at(scheduler: str | None) -> Iterator[Engine | None]:
    """Give the engine of a cluster; None, which is threads of this process, without a scheduler."""
    from lowrank_ldu.analysis import connect  # noqa: PLC0415

    if scheduler is None:
        yield None
    else:
        with connect(scheduler) as cluster:
            yield cluster
