"""`lowrank-ldu analyze`: a checkpoint in, a report out."""

from __future__ import annotations

from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, cast

import typer

from lowrank_ldu.cli.console import say
from lowrank_ldu.cli.errors import fail, readable_errors
from lowrank_ldu.cli.survey_options import (
    CHECKPOINT,
    Exclude,
    PivotingNames,
    Rank,
    Seed,
    Select,
    ThreadCount,
    prefer_huge_pages,
    survey_options,
)
from lowrank_ldu.errors import OutputError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from lowrank_ldu.analysis.options import ComputeDtype, Mode
    from lowrank_ldu.analysis.survey import Engine


class EngineKind(StrEnum):
    """What does the work."""

    LOCAL = "local"
    DASK = "dask"


def analyze(
    checkpoint: Annotated[
        str,
        typer.Argument(help=CHECKPOINT),
    ],
    *,
    rank: Rank = None,
    pivoting: PivotingNames = None,
    out: Annotated[Path, typer.Option(help="Folder for the report.")] = Path("lowrank-ldu-report"),
    force: Annotated[bool, typer.Option("--force", help="Replace a report that is in the folder.")] = False,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with an analysis that was stopped, if its journal is there.")
    ] = False,
    select: Select = None,
    exclude: Exclude = None,
    mode: Annotated[
        str,
        typer.Option(
            help="exact: the whole SVD, LDU to the full rank; cheap: leading singular values with bounds, LDU to the "
            "largest rank asked for."
        ),
    ] = "exact",
    target_error: Annotated[
        list[float] | None,
        typer.Option(
            help="Relative error whose smallest sufficient rank is looked for; repeat for more.",
            show_default="0.5, 0.1",
        ),
    ] = None,
    dtype: Annotated[
        str | None,
        typer.Option(
            help="float32 or float64, to factor in.", show_default="float64 for weights in float64, float32 for others"
        ),
    ] = None,
    seed: Seed = 0,
    threads: ThreadCount = None,
    engine: Annotated[
        EngineKind, typer.Option(help="local: threads of this process. dask: the workers of a cluster.")
    ] = EngineKind.LOCAL,
    scheduler: Annotated[
        str | None, typer.Option(help="With dask: the address of the scheduler, such as tcp://HOST:8786.")
    ] = None,
) -> None:
    """Factor every matrix of a checkpoint by LDU, SVD and PiSSA, and report errors, conditioning, pivots and time.

    Writes report.html, tables as CSV and Parquet, analysis.json and plots as PNG and SVG. While it runs, results are
    kept in a journal beside the folder; --resume goes on from there.
    """
    prefer_huge_pages()
    from lowrank_ldu.analysis.journal import lock_journal  # noqa: PLC0415
    from lowrank_ldu.analysis.options import SurveyOptions  # noqa: PLC0415
    from lowrank_ldu.analysis.report import write_report  # noqa: PLC0415
    from lowrank_ldu.analysis.run import analyse_checkpoint  # noqa: PLC0415
    from lowrank_ldu.cli.progress import show_progress  # noqa: PLC0415
    from lowrank_ldu.cli.summary import show_summary  # noqa: PLC0415
    from lowrank_ldu.files import check_target, whole_folder  # noqa: PLC0415

    if engine is EngineKind.DASK and scheduler is None:
        fail("--engine dask is given without --scheduler; accepted: the scheduler's address, such as tcp://HOST:8786")
    if engine is not EngineKind.DASK and scheduler is not None:
        fail(f"--scheduler is given with --engine {engine.value}; accepted: with --engine dask")
    if engine is EngineKind.DASK and threads is not None:
        fail("--threads is given with --engine dask, whose workers have their own; accepted: with --engine local")
    with readable_errors():
        options = survey_options(
            rank=rank,
            pivoting=pivoting,
            select=select,
            exclude=exclude,
            seed=seed,
            threads=threads,
            mode=cast("Mode", mode),
            targets=tuple(target_error or SurveyOptions.targets),
            dtype=cast("ComputeDtype | None", dtype),
        )
        # Before the hours of work, not after them; and nothing is made yet that a kill would leave.
        check_target(out, overwrite=force, otherwise="--force")
        journal = out.absolute().with_name(f"{out.absolute().name}.journal")
        # Until the report is there: another process would find the journal complete, and write the same report.
        with lock_journal(journal):
            try:
                with _engine(scheduler) as used, show_progress() as progress:
                    analysis = analyse_checkpoint(
                        checkpoint, options, progress, journal=journal, resume=resume, engine=used
                    )
                with whole_folder(out, overwrite=force, otherwise="--force") as folder:
                    write_report(analysis, folder)
            except (KeyboardInterrupt, SystemExit, OutputError):
                if journal.exists():
                    say(f"{journal.name} has the results so far; --resume goes on from there", err=True)
                raise
            journal.unlink(missing_ok=True)
        show_summary(analysis, out)


@contextmanager
def _engine(scheduler: str | None) -> Iterator[Engine | None]:
    from lowrank_ldu.analysis.cluster import connect  # noqa: PLC0415

    if scheduler is None:
        yield None
    else:
        with connect(scheduler) as cluster:
            yield cluster
