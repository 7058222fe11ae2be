"""Run `lowrank-ldu compare`: a base and its fine-tuned checkpoint."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from lowrank_ldu.cli.console import SafeConsole, say
from lowrank_ldu.cli.errors import fail, readable_errors
from lowrank_ldu.cli.long_runs import LOADING, WRITING, engine_at, journal_beside
from lowrank_ldu.cli.options import (
    CHECKPOINT,
    AcceptOtherBase,
    Basis,
    Device,
    EngineKind,
    EngineName,
    Exclude,
    PivotingNames,
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
from lowrank_ldu.formatting import duration, figure

if TYPE_CHECKING:
    from lowrank_ldu.adapters import AdapterUpdates
    from lowrank_ldu.analysis import CheckpointComparison

_REASONS_SHOWN = 4


def show_comparison(comparison: CheckpointComparison, out: Path) -> None:
    """Print the summary of a comparison.

    The share explained over the matrices, what was left out, and where the report is.
    """
    from lowrank_ldu.analysis import comparison_headlines, summary_rows  # noqa: PLC0415

    console = SafeConsole()
    table = Table(title="Share of the update that can be expressed", title_justify="left")
    table.add_column("at")
    table.add_column("method")
    for heading in ("numbers", "least", "median", "greatest"):
        table.add_column(heading, justify="right")
    place = ""
    for row in summary_rows(comparison):
        if place and row.place != place:
            table.add_section()
        shares = (row.explained.least, row.explained.median, row.explained.greatest)
        table.add_row("" if row.place == place else row.place, row.method, f"{row.numbers:,.0f}", *map(figure, shares))
        place = row.place
    say(f"Base: {comparison.base}")
    say(f"Tuned: {comparison.tuned}")
    console.print(table)
    for sentence in comparison_headlines(comparison):
        console.print(sentence)
    where = "" if comparison.options.device == "cpu" else f", computed on {comparison.computed_on}"
    console.print(f"{len(comparison.matrices)} matrices compared in {duration(comparison.seconds)}{where}.")
    left_out = [tensor for tensor in comparison.others if tensor.status != "unchanged"]
    if left_out:
        # What only one side has is a count: the reason of each may name another tensor.
        counts = Counter(
            tensor.reason or "" if tensor.status == "not compared" else tensor.status for tensor in left_out
        )
        reasons = [f"{count} x {reason}" for reason, count in counts.most_common(_REASONS_SHOWN)]
        more = f"; {len(counts) - _REASONS_SHOWN} other reasons" if len(counts) > _REASONS_SHOWN else ""
        say(f"{len(left_out)} not compared: {'; '.join(reasons)}{more}.")
    say(f"Report: {out / 'compare.html'}")


def _updates_or_path(
    tuned: str, basis: Path | None, engine: EngineKind, *, accept_other_base: bool
) -> AdapterUpdates | str:
    from lowrank_ldu.checkpoints.adapter_folder import is_adapter_folder  # noqa: PLC0415

    if not is_adapter_folder(tuned):
        given = {"--basis": basis is not None, "--accept-other-base": accept_other_base}
        for name in (name for name, is_given in given.items() if is_given):
            fail(f"{name} is given, and {tuned!r} is no folder of a LoLDU adapter; accepted: with one as TUNED")
        return tuned
    if engine is not EngineKind.LOCAL:
        fail(
            f"--engine is {engine.value}, and {tuned!r} is the folder of a LoLDU adapter, whose updates workers cannot "
            "make; accepted: --engine local"
        )
    from lowrank_ldu.adapters import open_updates  # noqa: PLC0415

    return open_updates(tuned, basis=basis, accept_other_base=accept_other_base)


def compare(
    base: Annotated[
        str,
        typer.Argument(help=f"The base. {CHECKPOINT}"),
    ],
    tuned: Annotated[
        str, typer.Argument(help="The fine-tuned checkpoint, likewise, in any format; or an adapter's folder.")
    ],
    *,
    rank: Rank = None,
    pivoting: PivotingNames = None,
    out: Annotated[Path, typer.Option(help="Folder for the report.")] = Path("lowrank-ldu-comparison"),
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a report that is in the folder.")] = False,
    resume: Resume = False,
    select: Select = None,
    exclude: Exclude = None,
    seed: Seed = 0,
    threads: ThreadCount = None,
    device: Device = "cpu",
    engine: EngineName = EngineKind.LOCAL,
    scheduler: Scheduler = None,
    basis: Basis = None,
    accept_other_base: AcceptOtherBase = False,
) -> None:
    """Compare a fine-tuned checkpoint with its base.

    Says how much of the update the base's LDU diagonal can express, beside LoRA and singular vectors. Writes
    compare.html, tables as CSV and Parquet, compare.json and plots as PNG and SVG. While it runs, results are kept in a
    journal beside the folder; --resume goes on from there.
    """
    prefer_huge_pages()
    from lowrank_ldu.cli.progress import show_progress, show_stage  # noqa: PLC0415
    from lowrank_ldu.files import whole_folder  # noqa: PLC0415

    with show_stage(LOADING):
        from lowrank_ldu.analysis import CompareOptions, compare_checkpoints, write_comparison  # noqa: PLC0415

    check_engine(engine, scheduler, threads, device)
    with readable_errors():
        options = options_of(
            CompareOptions,
            rank=rank,
            pivoting=pivoting,
            select=select,
            exclude=exclude,
            seed=seed,
            threads=threads,
            device=device,
        )
        other = _updates_or_path(tuned, basis, engine, accept_other_base=accept_other_base)
        with journal_beside(out, overwrite=overwrite) as journal:
            with engine_at(scheduler) as used, show_progress() as progress:
                comparison = compare_checkpoints(
                    base, other, options, progress, journal=journal, resume=resume, engine=used
                )
            with whole_folder(out, overwrite=overwrite, otherwise="--overwrite") as folder, show_stage(WRITING):
                write_comparison(comparison, folder)
        show_comparison(comparison, out)
