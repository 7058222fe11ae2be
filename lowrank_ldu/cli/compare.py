"""`lowrank-ldu compare`: two checkpoints in, what their difference takes to write down out."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from lowrank_ldu.cli.errors import readable_errors
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


def compare(
    base: Annotated[
        str,
        typer.Argument(help=f"The base. {CHECKPOINT}"),
    ],
    tuned: Annotated[str, typer.Argument(help="The fine-tuned checkpoint, likewise; the format may differ.")],
    *,
    rank: Rank = None,
    pivoting: PivotingNames = None,
    out: Annotated[Path, typer.Option(help="Folder for the report.")] = Path("lowrank-ldu-comparison"),
    force: Annotated[bool, typer.Option("--force", help="Replace a report that is in the folder.")] = False,
    select: Select = None,
    exclude: Exclude = None,
    seed: Seed = 0,
    threads: ThreadCount = None,
) -> None:
    """Say how much of a fine-tuning update the base's LDU diagonal can express, beside LoRA and singular vectors.

    Writes compare.csv, compare.json and compare.html.
    """
    prefer_huge_pages()
    from lowrank_ldu.analysis.comparison.report import write_comparison  # noqa: PLC0415
    from lowrank_ldu.analysis.comparison.run import compare_checkpoints  # noqa: PLC0415
    from lowrank_ldu.cli.explained import show_explained  # noqa: PLC0415
    from lowrank_ldu.cli.progress import show_progress  # noqa: PLC0415
    from lowrank_ldu.files import whole_folder  # noqa: PLC0415

    with readable_errors():
        options = survey_options(
            rank=rank,
            pivoting=pivoting,
            select=select,
            exclude=exclude,
            seed=seed,
            threads=threads,
        )
        with whole_folder(out, overwrite=force, otherwise="--force") as folder:
            with show_progress() as progress:
                comparison = compare_checkpoints(base, tuned, options, progress)
            write_comparison(comparison, folder)
        show_explained(comparison, out)
