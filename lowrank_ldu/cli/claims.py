"""Run `lowrank-ldu claims`: the paper's claims, tested."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path  # noqa: TC003  # typer reads the annotations
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from lowrank_ldu.cli.console import SafeConsole, say
from lowrank_ldu.cli.errors import readable_errors
from lowrank_ldu.cli.options import (
    CHECKPOINT,
    Exclude,
    Rank,
    Seed,
    Select,
    ThreadCount,
    options_of,
    prefer_huge_pages,
)
from lowrank_ldu.formatting import duration

if TYPE_CHECKING:
    from collections.abc import Sequence

    from lowrank_ldu.analysis import Analysis, Claim


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
    console.print(
        f"{len(analysis.matrices)} matrices tested in {duration(analysis.seconds)}, {len(analysis.skipped)} tensors "
        "skipped.",
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
    select: Select = None,
    exclude: Exclude = None,
    seed: Seed = 0,
    threads: ThreadCount = None,
) -> None:
    """Test the LoLDU paper's claims on a checkpoint's weights.

    Speed beside the SVD, orthogonality, what the leading terms hold, what the start of the diagonal changes, and
    storage: for each claim the rule, the measured figures and a verdict that follows from both.
    """
    prefer_huge_pages()
    from lowrank_ldu.analysis import (  # noqa: PLC0415
        SurveyOptions,
        analyze_checkpoint,
        examine_claims,
        write_claims,
    )
    from lowrank_ldu.cli.progress import show_progress  # noqa: PLC0415
    from lowrank_ldu.files import whole_folder  # noqa: PLC0415

    with readable_errors():
        options = options_of(
            SurveyOptions,
            rank=rank,
            pivoting=["partial", "complete"],
            select=select,
            exclude=exclude,
            seed=seed,
            threads=threads,
            mode="exact",
        )
        with (
            nullcontext() if out is None else whole_folder(out, overwrite=overwrite, otherwise="--overwrite") as folder
        ):
            with show_progress() as progress:
                analysis = analyze_checkpoint(checkpoint, options, progress)
            examined = examine_claims(analysis)
            if folder is not None:
                write_claims(examined, analysis, folder)
        show_claims(examined, analysis, out)
