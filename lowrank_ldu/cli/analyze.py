"""`lowrank-ldu analyze`: a checkpoint in, a report out."""

from __future__ import annotations

import os
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, cast

import typer

from lowrank_ldu.cli.errors import fail, readable_errors

if TYPE_CHECKING:
    from collections.abc import Iterator

    from lowrank_ldu.analysis.options import ComputeDtype, Mode
    from lowrank_ldu.analysis.survey import Engine
    from lowrank_ldu.decomposition import Pivoting


class EngineKind(StrEnum):
    """What does the work."""

    LOCAL = "local"
    DASK = "dask"


def analyze(
    checkpoint: Annotated[
        str,
        typer.Argument(
            help="A .safetensors, .pt, .bin, .gguf, .onnx, .h5 or .npz file, an index, a directory, or hf://OWNER/NAME."
        ),
    ],
    *,
    rank: Annotated[
        list[int] | None,
        typer.Option(help="Rank to measure; repeat for more. The full rank is always added.", show_default="8, 64"),
    ] = None,
    pivoting: Annotated[
        list[str] | None,
        typer.Option(help="partial, complete, rook or randomized; repeat for more.", show_default="partial, complete"),
    ] = None,
    out: Annotated[Path, typer.Option(help="Folder for the report.")] = Path("lowrank-ldu-report"),
    force: Annotated[bool, typer.Option("--force", help="Replace a report that is in the folder.")] = False,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with an analysis that was stopped, if its journal is there.")
    ] = False,
    select: Annotated[
        str | None, typer.Option(help="Analyse only tensors whose name matches this regular expression.")
    ] = None,
    exclude: Annotated[str | None, typer.Option(help="Leave out tensors whose name matches this one.")] = None,
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
    seed: Annotated[int, typer.Option(help="Seed of randomised pivoting, quick PiSSA and sketches.")] = 0,
    threads: Annotated[int | None, typer.Option(help="Cores to use, by the local engine.", show_default="all")] = None,
    engine: Annotated[
        EngineKind, typer.Option(help="local: threads of this process. dask: the workers of a cluster.")
    ] = EngineKind.LOCAL,
    scheduler: Annotated[
        str | None, typer.Option(help="With dask: the address of the scheduler, such as tcp://HOST:8786.")
    ] = None,
) -> None:
    """Factor every matrix of a checkpoint by LDU, SVD and PiSSA, and report errors, conditioning, pivots and time.

    Writes figures.csv, tensors.csv, analysis.json and report.html. While it runs, results are kept in a journal beside
    the folder; --resume goes on from there.
    """
    # Large buffers in huge pages: on wide embeddings the kernel's page faults cost as much as the arithmetic.
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
    from lowrank_ldu.analysis.cluster import ClusterError  # noqa: PLC0415
    from lowrank_ldu.analysis.journal import JournalError  # noqa: PLC0415
    from lowrank_ldu.analysis.options import OptionError, SurveyOptions, available_cores  # noqa: PLC0415
    from lowrank_ldu.analysis.readers import CheckpointError  # noqa: PLC0415
    from lowrank_ldu.analysis.report import write_report  # noqa: PLC0415
    from lowrank_ldu.analysis.report.folder import OutputError, check_target, whole_folder  # noqa: PLC0415
    from lowrank_ldu.analysis.run import NothingToAnalyseError, analyse_checkpoint  # noqa: PLC0415
    from lowrank_ldu.cli.progress import show_progress  # noqa: PLC0415
    from lowrank_ldu.cli.summary import show_summary  # noqa: PLC0415

    if engine is EngineKind.DASK and scheduler is None:
        fail("--engine dask is given without --scheduler; accepted: the scheduler's address, such as tcp://HOST:8786")
    if engine is not EngineKind.DASK and scheduler is not None:
        fail(f"--scheduler is given with --engine {engine.value}; accepted: with --engine dask")
    if engine is EngineKind.DASK and threads is not None:
        fail("--threads is given with --engine dask, whose workers have their own; accepted: with --engine local")
    with readable_errors(CheckpointError, ClusterError, JournalError, NothingToAnalyseError, OptionError, OutputError):
        options = SurveyOptions(
            ranks=tuple(rank or SurveyOptions.ranks),
            pivoting=cast("tuple[Pivoting, ...]", tuple(pivoting or SurveyOptions.pivoting)),  # checked in there
            select=select,
            exclude=exclude,
            mode=cast("Mode", mode),
            targets=tuple(target_error or SurveyOptions.targets),
            dtype=cast("ComputeDtype | None", dtype),
            seed=seed,
            threads=available_cores() if threads is None else threads,
        )
        # Before the hours of work, not after them; and nothing is made yet that a kill would leave.
        check_target(out, overwrite=force)
        journal = out.absolute().with_name(f"{out.absolute().name}.journal")
        try:
            with _engine(scheduler) as used, show_progress() as progress:
                analysis = analyse_checkpoint(
                    checkpoint, options, progress, journal=journal, resume=resume, engine=used
                )
        except KeyboardInterrupt:
            if journal.exists():
                typer.echo(f"{journal.name} has the results so far; --resume goes on from there", err=True)
            raise
        with whole_folder(out, overwrite=force) as folder:
            write_report(analysis, folder)
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
