"""Run `lowrank-ldu analyze`: a checkpoint in, a report out."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Annotated, cast

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
    PivotingNames,
    Rank,
    Resume,
    Scheduler,
    Seed,
    Select,
    ThreadCount,
    check_engine,
    choice,
    options_of,
    prefer_huge_pages,
)
from lowrank_ldu.formatting import duration, figure

if TYPE_CHECKING:
    from collections.abc import Iterator

    from lowrank_ldu.analysis import Analysis, ComputeDtype, Mode, Scope

_REASONS_SHOWN = 4
# As in `lowrank_ldu.analysis.options`, which is not imported for help.
MODES = ("fast", "exact", "cheap")
COMPUTE_DTYPES = ("float32", "float64")
_YES_NO = ("yes", "no")


def show_summary(analysis: Analysis, out: Path) -> None:
    """Print the summary of an analysis.

    Medians over the matrices, what was skipped, and where the report is.
    """
    console = SafeConsole()
    from lowrank_ldu.analysis import headline_scope, headlines  # noqa: PLC0415

    scope = headline_scope(analysis)
    table = Table(title=f"Medians over {count_of(len(scope.matrices))}, at {scope.place}", title_justify="left")
    table.add_column("method")
    headings = ("error", "after refit", "error > 1", "cond(G)", "time")
    shown = len(headings) - (not analysis.has_times)
    for heading in headings[:shown]:
        table.add_column(heading, justify="right")
    for row in _rows(scope, analysis):
        table.add_row(*row[: shown + 1])
    console.print(table)
    for sentence in headlines(analysis)[:2]:
        console.print(sentence)
    where = "" if analysis.options.device == "cpu" else f", computed on {analysis.computed_on}"
    console.print(f"{count_of(len(analysis.matrices))} analyzed in {duration(analysis.seconds)}{where}.")
    if analysis.skipped:
        counts = Counter(result.reason for result in analysis.skipped)
        reasons = [f"{count} x {reason or ''}" for reason, count in counts.most_common(_REASONS_SHOWN)]
        more = f"; {len(counts) - _REASONS_SHOWN} other reasons" if len(counts) > _REASONS_SHOWN else ""
        say(f"{len(analysis.skipped)} skipped: {'; '.join(reasons)}{more}.")
    say(f"Report: {out / 'report.html'}")


def _rows(scope: Scope, analysis: Analysis) -> Iterator[tuple[str, ...]]:
    from lowrank_ldu.analysis.report.scope import seconds_of, seconds_of_svd  # noqa: PLC0415

    for pivoting in analysis.options.pivoting:
        measurements = scope.ldu(pivoting)
        figures = [item.diagnostics for item in measurements]
        yield (
            f"LDU, {pivoting}",
            figure(median(item.frobenius_error for item in figures)),
            figure(median(item.refit_frobenius_error for item in figures)),
            str(sum(item.frobenius_error > 1 for item in figures)),
            figure(median(item.condition_gram for item in figures)),
            duration(_median(seconds_of(measurements))),
        )
    if scope.rank is not None:  # these are run at the ranks asked for only
        methods = [("near-best LDU", "ldu_lowrank"), *([("quick PiSSA", "pissa")] * analysis.options.has_pissa)]
        for label, method in methods:
            found = [matrix.at(method, scope.rank) for matrix in scope.matrices]
            yield (
                label,
                figure(median(item.diagnostics.frobenius_error for item in found)),
                *("",) * 3,
                duration(_median(seconds_of(found))),
            )
    best = [item.diagnostics.svd_frobenius_error for item in scope.ldu(analysis.options.pivoting[0])]
    seconds = _median(seconds_of_svd(scope.matrices))
    # Of a randomized SVD it is a bound from above.
    exact = all(matrix.svd_niter is None for matrix in scope.matrices)
    label, least = ("exact SVD", "") if exact else ("randomized SVD", "at most ")
    yield (label, f"{least}{figure(median(best))}", *("",) * 3, duration(seconds))


def _median(seconds: list[float]) -> float | None:
    return median(seconds) if seconds else None


def count_of(matrices: int) -> str:
    """Return a number of matrices in words."""
    return "1 matrix" if matrices == 1 else f"{matrices} matrices"


def analyze(
    checkpoint: Annotated[
        str,
        typer.Argument(help=CHECKPOINT),
    ],
    *,
    rank: Rank = None,
    pivoting: PivotingNames = None,
    out: Annotated[Path, typer.Option(help="Folder for the report.")] = Path("lowrank-ldu-report"),
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a report that is in the folder.")] = False,
    resume: Resume = False,
    select: Select = None,
    exclude: Exclude = None,
    mode: Annotated[
        str,
        choice(
            MODES,
            help="fast: singular values by the cheapest way, LDU to the largest rank asked for. exact: PiSSA and "
            "spectral errors too, LDU to the full rank. cheap: leading singular values with bounds, PiSSA.",
        ),
    ] = "fast",
    times: Annotated[
        str | None,
        choice(_YES_NO, help="Time the methods, once for each shape.", show_default="no in mode fast, yes in others"),
    ] = None,
    target_error: Annotated[
        list[float] | None,
        typer.Option(
            metavar="<float>",
            help="Relative error whose smallest sufficient rank is looked for; repeat for more.",
            show_default="0.5, 0.1",
        ),
    ] = None,
    dtype: Annotated[
        str | None,
        choice(
            COMPUTE_DTYPES,
            help="Dtype to factor in.",
            show_default="float64 for weights in float64, float32 for others",
        ),
    ] = None,
    seed: Seed = 0,
    threads: ThreadCount = None,
    device: Device = "cpu",
    engine: EngineName = EngineKind.LOCAL,
    scheduler: Scheduler = None,
) -> None:
    """Analyze every matrix of a checkpoint and write a report.

    Each is factored by LDU, SVD and PiSSA; the report has errors, conditioning, pivots and time. Writes report.html,
    tables as CSV and Parquet, analysis.json and plots as PNG and SVG. While it runs, results are kept in a journal
    beside the folder; --resume goes on from there.
    """
    prefer_huge_pages()
    from lowrank_ldu.cli.progress import show_progress, show_stage  # noqa: PLC0415
    from lowrank_ldu.files import whole_folder  # noqa: PLC0415

    with show_stage(LOADING):
        from lowrank_ldu.analysis import SurveyOptions, write_report  # noqa: PLC0415
        from lowrank_ldu.analysis import analyze as analyze_source  # noqa: PLC0415

    check_engine(engine, scheduler, threads, device)
    if times not in {None, *_YES_NO}:
        fail(f"--times is {times!r}; accepted: {', '.join(_YES_NO)}")
    with readable_errors():
        options = options_of(
            SurveyOptions,
            rank=rank,
            pivoting=pivoting,
            select=select,
            exclude=exclude,
            seed=seed,
            threads=threads,
            device=device,
            mode=cast("Mode", mode),
            targets=tuple(target_error or SurveyOptions.targets),
            dtype=cast("ComputeDtype | None", dtype),
            times=None if times is None else times == "yes",
        )
        with journal_beside(out, overwrite=overwrite) as journal:
            with engine_at(scheduler) as used, show_progress() as progress:
                analysis = analyze_source(
                    checkpoint, options=options, progress=progress, journal=journal, resume=resume, engine=used
                )
            with whole_folder(out, overwrite=overwrite, otherwise="--overwrite") as folder, show_stage(WRITING):
                write_report(analysis, folder)
        show_summary(analysis, out)
