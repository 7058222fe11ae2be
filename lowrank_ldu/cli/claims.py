"""`lowrank-ldu claims`: the paper's numerical claims, tested on a checkpoint."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path  # noqa: TC003  # typer reads the annotations
from typing import Annotated

import typer

from lowrank_ldu.cli.errors import readable_errors
from lowrank_ldu.cli.survey_options import (
    CHECKPOINT,
    Exclude,
    Rank,
    Seed,
    Select,
    ThreadCount,
    prefer_huge_pages,
    survey_options,
)


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
    force: Annotated[bool, typer.Option("--force", help="Replace files that are in the folder.")] = False,
    select: Select = None,
    exclude: Exclude = None,
    seed: Seed = 0,
    threads: ThreadCount = None,
) -> None:
    """Test what the LoLDU paper claims of LDU factorisations on the weights of a checkpoint.

    Speed beside the SVD, orthogonality, what the leading terms hold, what the start of the diagonal changes, and
    storage: for each claim the rule, the measured figures and a verdict that follows from both.
    """
    prefer_huge_pages()
    from lowrank_ldu.adapters import stored_numbers  # noqa: PLC0415
    from lowrank_ldu.analysis.claims import examine_claims, write_claims  # noqa: PLC0415
    from lowrank_ldu.analysis.run import analyse_checkpoint  # noqa: PLC0415
    from lowrank_ldu.cli.progress import show_progress  # noqa: PLC0415
    from lowrank_ldu.cli.verdicts import show_claims  # noqa: PLC0415
    from lowrank_ldu.files import whole_folder  # noqa: PLC0415

    with readable_errors():
        options = survey_options(
            rank=rank,
            pivoting=["partial", "complete"],
            select=select,
            exclude=exclude,
            seed=seed,
            threads=threads,
        )
        with nullcontext() if out is None else whole_folder(out, overwrite=force, otherwise="--force") as folder:
            with show_progress() as progress:
                analysis = analyse_checkpoint(checkpoint, options, progress)
            examined = examine_claims(analysis, stored_numbers)
            if folder is not None:
                write_claims(examined, analysis, folder)
        show_claims(examined, analysis, out)
