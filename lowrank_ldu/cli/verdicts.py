"""What is shown of the claims: a table for each, with the rule above it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.table import Table

from lowrank_ldu.analysis.report.formatting import duration
from lowrank_ldu.cli.console import SafeConsole, say

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from lowrank_ldu.analysis.claims import Claim
    from lowrank_ldu.analysis.run import Analysis


def show_claims(claims: Sequence[Claim], analysis: Analysis, out: Path | None) -> None:
    """Write to stdout the rule, the measured figures and the verdict of each test, and where the files are."""
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
