"""`lowrank-ldu compare`: two checkpoints in, what their difference takes to write down out."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, cast

import typer

from lowrank_ldu.cli.errors import readable_errors

if TYPE_CHECKING:
    from lowrank_ldu.decomposition import Pivoting


def compare(
    base: Annotated[
        str,
        typer.Argument(
            help="The base: a .safetensors, .pt, .bin, .gguf, .onnx, .h5 or .npz file, an index of shards, or a "
            "directory."
        ),
    ],
    tuned: Annotated[str, typer.Argument(help="The fine-tuned checkpoint, likewise; the format may differ.")],
    *,
    rank: Annotated[
        list[int] | None,
        typer.Option(help="Rank to measure; repeat for more. The full rank is always added.", show_default="8, 64"),
    ] = None,
    pivoting: Annotated[
        list[str] | None,
        typer.Option(help="partial, complete, rook or randomized; repeat for more.", show_default="partial, complete"),
    ] = None,
    out: Annotated[Path, typer.Option(help="Folder for the report.")] = Path("lowrank-ldu-comparison"),
    force: Annotated[bool, typer.Option("--force", help="Replace a report that is in the folder.")] = False,
    select: Annotated[
        str | None, typer.Option(help="Compare only tensors whose name matches this regular expression.")
    ] = None,
    exclude: Annotated[str | None, typer.Option(help="Leave out tensors whose name matches this one.")] = None,
    seed: Annotated[int, typer.Option(help="Seed of randomised pivoting.")] = 0,
    threads: Annotated[int | None, typer.Option(help="Cores to use.", show_default="all")] = None,
) -> None:
    """Say how much of a fine-tuning update the base's LDU diagonal can express, beside LoRA and singular vectors.

    Writes compare.csv, compare.json and compare.html.
    """
    # Large buffers in huge pages: on wide embeddings the kernel's page faults cost as much as the arithmetic.
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
    from lowrank_ldu.analysis.comparison.report import write_comparison  # noqa: PLC0415
    from lowrank_ldu.analysis.comparison.run import NothingToCompareError, compare_checkpoints  # noqa: PLC0415
    from lowrank_ldu.analysis.options import OptionError, SurveyOptions, available_cores  # noqa: PLC0415
    from lowrank_ldu.analysis.readers import CheckpointError  # noqa: PLC0415
    from lowrank_ldu.analysis.report.folder import OutputError, whole_folder  # noqa: PLC0415
    from lowrank_ldu.cli.explained import show_explained  # noqa: PLC0415
    from lowrank_ldu.cli.progress import show_progress  # noqa: PLC0415

    with readable_errors(CheckpointError, NothingToCompareError, OptionError, OutputError):
        options = SurveyOptions(
            ranks=tuple(rank or SurveyOptions.ranks),
            pivoting=cast("tuple[Pivoting, ...]", tuple(pivoting or SurveyOptions.pivoting)),  # checked in there
            select=select,
            exclude=exclude,
            seed=seed,
            threads=available_cores() if threads is None else threads,
        )
        with whole_folder(out, overwrite=force) as folder:
            with show_progress() as progress:
                comparison = compare_checkpoints(base, tuned, options, progress)
            write_comparison(comparison, folder)
        show_explained(comparison, out)
