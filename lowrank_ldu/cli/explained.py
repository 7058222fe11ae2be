"""What is shown when two checkpoints are compared."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from rich.table import Table

from lowrank_ldu.analysis.comparison.summary import headlines, summary_rows
from lowrank_ldu.analysis.report.formatting import duration, figure
from lowrank_ldu.cli.console import SafeConsole, say

if TYPE_CHECKING:
    from pathlib import Path

    from lowrank_ldu.analysis.comparison.run import CheckpointComparison

_REASONS_SHOWN = 4


def show_explained(comparison: CheckpointComparison, out: Path) -> None:
    """Write to stdout the share explained over the matrices, what was left out, and where the report is."""
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
    console.print(table)
    for sentence in headlines(comparison):
        console.print(sentence)
    console.print(f"{len(comparison.matrices)} matrices compared in {duration(comparison.seconds)}.")
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
