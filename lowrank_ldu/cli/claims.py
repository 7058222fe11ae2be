"""Run `lowrank-ldu claims`: the paper's claims, tested."""

from __future__ import annotations

from pathlib import Path  # noqa: TC003  # typer reads the annotations
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from lowrank_ldu.cli.console import SafeConsole, say
from lowrank_ldu.cli.errors import fail, readable_errors
from lowrank_ldu.cli.long_runs import LOADING, WRITING, engine_at, journal_beside
from lowrank_ldu.cli.options import (
    CHECKPOINT,
    Device,
    EngineKind,
    EngineName,
    Exclude,
    Rank,
    Resume,
    Scheduler,
    Seed,
    Select,
    ThreadCount,
    check_engine,
    options_of,
    prefer_huge_pages,
)
from lowrank_ldu.formatting import duration

if TYPE_CHECKING:
    from collections.abc import Sequence

    from lowrank_ldu.analysis import Analysis, Claim, Claims


def show_claims(claims: Sequence[Claim], analysis: Analysis, out: Path | None) -> None:
    """Print the figures and the verdict of each test.

    The rule stands above them, and where the files are below.
    """
    console = SafeConsole()
    for claim in claims:
        console.print(f"{claim.name}: {claim.statement} ({claim.source})")
        console.print(f"True of a matrix if {claim.rule}.")
        table = Table()
        for heading in ("test", "at", "measured (medians)", "verdict"):
            table.add_column(heading)
        for finding in claim.findings:
            table.add_row(finding.test, finding.place, finding.measured or "-", finding.verdict)
        console.print(table)
    where = "" if analysis.options.device == "cpu" else f" Computed on {analysis.computed_on}."
    console.print(
        f"{len(analysis.matrices)} matrices tested in {duration(analysis.seconds)}, {len(analysis.skipped)} tensors "
        f"skipped.{where}",
    )
    if out is not None:
        say(f"Page: {out / 'claims.html'}")


def claims(
    checkpoint: Annotated[
        str,
        typer.Argument(help=CHECKPOINT),
    ],
    *,
    rank: Rank = None,
    out: Annotated[
        Path | None, typer.Option(help="Folder for claims.json and claims.html.", show_default="none is written")
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace files that are in the folder.")] = False,
    resume: Resume = False,
    select: Select = None,
    exclude: Exclude = None,
    seed: Seed = 0,
    threads: ThreadCount = None,
    device: Device = "cpu",
    engine: EngineName = EngineKind.LOCAL,
    scheduler: Scheduler = None,
) -> None:
    """Test the LoLDU paper's claims on a checkpoint's weights.

    Speed beside the SVD, orthogonality, what the leading terms hold, what the start of the diagonal changes, and
    storage: for each claim the rule, the measured figures and a verdict that follows from both. With --out, results are
    kept in a journal beside the folder while it runs; --resume goes on from there.
    """
    prefer_huge_pages()
    from lowrank_ldu.cli.progress import show_progress, show_stage  # noqa: PLC0415
    from lowrank_ldu.files import whole_folder  # noqa: PLC0415

    with show_stage(LOADING):
        from lowrank_ldu.analysis import SurveyOptions, examine_claims, write_claims  # noqa: PLC0415

    check_engine(engine, scheduler, threads, device)
    if resume and out is None:
        fail("--resume is given without --out; accepted: with the --out that the journal to go on with is beside")

    def examine(journal: Path | None) -> Claims:
        with engine_at(scheduler) as used, show_progress() as progress:
            return examine_claims(
                checkpoint, options=options, progress=progress, journal=journal, resume=resume, engine=used
            )

    with readable_errors():
        options = options_of(
            SurveyOptions,
            rank=rank,
            pivoting=["partial", "complete"],
            select=select,
            exclude=exclude,
            seed=seed,
            threads=threads,
            device=device,
            mode="exact",
        )
        if out is None:
            examined = examine(None)
        else:
            with journal_beside(out, overwrite=overwrite) as journal:
                examined = examine(journal)
                with whole_folder(out, overwrite=overwrite, otherwise="--overwrite") as folder, show_stage(WRITING):
                    write_claims(examined, examined.analysis, folder)
        show_claims(examined, examined.analysis, out)
