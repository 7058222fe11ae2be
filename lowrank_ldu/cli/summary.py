"""What is shown when a survey is done."""

from __future__ import annotations

from collections import Counter
from statistics import median
from typing import TYPE_CHECKING

from rich.table import Table

from lowrank_ldu.analysis.report.formatting import duration, figure
from lowrank_ldu.analysis.report.scope import headline_scope
from lowrank_ldu.cli.console import SafeConsole, say

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from lowrank_ldu.analysis.report.scope import Scope
    from lowrank_ldu.analysis.run import Analysis

_REASONS_SHOWN = 4


def show_summary(analysis: Analysis, out: Path) -> None:
    """Write to stdout the medians over the matrices, what was skipped, and where the report is."""
    console = SafeConsole()
    scope = headline_scope(analysis)
    table = Table(title=f"Medians over {count_of(len(scope.matrices))}, at {scope.place}", title_justify="left")
    table.add_column("method")
    for heading in ("error", "after refit", "error > 1", "cond(G)", "time"):
        table.add_column(heading, justify="right")
    for row in _rows(scope, analysis):
        table.add_row(*row)
    console.print(table)
    target = max(analysis.options.targets)
    advice = [matrix.recommendation for _, matrix in analysis.matrices]
    console.print(
        f"LDU with a refitted diagonal reaches a relative error of {target:g} with factors smaller than the weight in "
        f"{sum(item.pays for item in advice)} of {count_of(len(advice))}.",
    )
    console.print(f"{count_of(len(analysis.matrices))} analysed in {duration(analysis.seconds)}.")
    if analysis.skipped:
        counts = Counter(result.reason for result in analysis.skipped)
        reasons = [f"{count} x {reason or ''}" for reason, count in counts.most_common(_REASONS_SHOWN)]
        more = f"; {len(counts) - _REASONS_SHOWN} other reasons" if len(counts) > _REASONS_SHOWN else ""
        say(f"{len(analysis.skipped)} skipped: {'; '.join(reasons)}{more}.")
    say(f"Report: {out / 'report.html'}")


def _rows(scope: Scope, analysis: Analysis) -> Iterator[tuple[str, ...]]:
    for pivoting in analysis.options.pivoting:
        measurements = scope.ldu(pivoting)
        figures = [item.diagnostics for item in measurements]
        yield (
            f"LDU, {pivoting}",
            figure(median(item.frobenius_error for item in figures)),
            figure(median(item.refit_frobenius_error for item in figures)),
            str(sum(item.frobenius_error > 1 for item in figures)),
            figure(median(item.condition_gram for item in figures)),
            duration(median(item.seconds for item in measurements)),
        )
    if scope.rank is not None:  # quick PiSSA is run at the ranks asked for only
        quick = [matrix.at("pissa", scope.rank) for matrix in scope.matrices]
        yield (
            "quick PiSSA",
            figure(median(item.diagnostics.frobenius_error for item in quick)),
            *("",) * 3,
            duration(median(item.seconds for item in quick)),
        )
    best = [item.diagnostics.svd_frobenius_error for item in scope.ldu(analysis.options.pivoting[0])]
    seconds = median(matrix.svd_seconds for matrix in scope.matrices)
    # Of a randomised SVD it is a bound from above.
    exact = all(matrix.svd_niter is None for matrix in scope.matrices)
    label, least = ("exact SVD", "") if exact else ("randomised SVD", "at most ")
    yield (label, f"{least}{figure(median(best))}", *("",) * 3, duration(seconds))


def count_of(matrices: int) -> str:
    """Return a number of matrices in words."""
    return "1 matrix" if matrices == 1 else f"{matrices} matrices"
