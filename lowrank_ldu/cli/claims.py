"""`lowrank-ldu claims`: the paper's numerical claims, tested on a checkpoint."""

from __future__ import annotations

import os
from contextlib import nullcontext
from pathlib import Path  # noqa: TC003  # typer reads the annotations
from typing import Annotated

import typer

from lowrank_ldu.cli.errors import readable_errors


def claims(
    checkpoint: Annotated[
        str,
        typer.Argument(
            help="A .safetensors, .pt, .bin, .gguf, .onnx, .h5 or .npz file, an index, a directory, or hf://OWNER/NAME."
        ),
    ],
    *,
    rank: Annotated[
        list[int] | None,
        typer.Option(help="Rank to test at; repeat for more. The full rank is always added.", show_default="8, 64"),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Folder for claims.json and claims.html.", show_default="none is written")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace files that are in the folder.")] = False,
    select: Annotated[
        str | None, typer.Option(help="Test only tensors whose name matches this regular expression.")
    ] = None,
    exclude: Annotated[str | None, typer.Option(help="Leave out tensors whose name matches this one.")] = None,
    seed: Annotated[int, typer.Option(help="Seed of quick PiSSA and of random starts of the diagonal.")] = 0,
    threads: Annotated[int | None, typer.Option(help="Cores to use.", show_default="all")] = None,
) -> None:
    """Test what the LoLDU paper claims of LDU factorisations on the weights of a checkpoint.

    Speed beside the SVD, orthogonality, what the leading terms hold, what the start of the diagonal changes, and
    storage: for each claim the rule, the measured figures and a verdict that follows from both.
    """
    # Large buffers in huge pages: on wide embeddings the kernel's page faults cost as much as the arithmetic.
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
    from lowrank_ldu.adapters import stored_numbers  # noqa: PLC0415
    from lowrank_ldu.analysis.claims import examine_claims, write_claims  # noqa: PLC0415
    from lowrank_ldu.analysis.options import OptionError, SurveyOptions, available_cores  # noqa: PLC0415
    from lowrank_ldu.analysis.readers import CheckpointError  # noqa: PLC0415
    from lowrank_ldu.analysis.report.folder import OutputError, whole_folder  # noqa: PLC0415
    from lowrank_ldu.analysis.run import NothingToAnalyseError, analyse_checkpoint  # noqa: PLC0415
    from lowrank_ldu.cli.progress import show_progress  # noqa: PLC0415
    from lowrank_ldu.cli.verdicts import show_claims  # noqa: PLC0415

    with readable_errors(CheckpointError, NothingToAnalyseError, OptionError, OutputError):
        options = SurveyOptions(
            ranks=tuple(rank or SurveyOptions.ranks),
            pivoting=("partial", "complete"),
            select=select,
            exclude=exclude,
            seed=seed,
            threads=available_cores() if threads is None else threads,
        )
        with nullcontext() if out is None else whole_folder(out, overwrite=force) as folder:
            with show_progress() as progress:
                analysis = analyse_checkpoint(checkpoint, options, progress)
            examined = examine_claims(analysis, stored_numbers)
            if folder is not None:
                write_claims(examined, analysis, folder)
        show_claims(examined, analysis, out)
