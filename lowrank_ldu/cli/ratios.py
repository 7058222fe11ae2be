"""What is shown of a measurement: a table for each mode, and what was left out."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.table import Table

from lowrank_ldu.cli.console import SafeConsole

if TYPE_CHECKING:
    from lowrank_ldu.benchmarking import Case
    from lowrank_ldu.benchmarking.run import Result

_MODES = {"forward": "forward, without gradients", "training": "forward and backward"}


def show_ratios(case: Case, result: Result) -> None:
    """Write the tables of a case to stdout."""
    console = SafeConsole()
    for mode in case.modes:
        rows = [row for row in result.rows if row.mode == mode]
        first = rows[0]
        where = f"{first.device_name}, {first.threads} threads" if first.device == "cpu" else first.device_name
        table = Table(title=f"{case.title}, {first.dtype}: {_MODES[mode]}\n{where}", title_justify="left")
        table.add_column("method")
        for heading in ("ratio", "ms", "20 - 80 %", "peak MB", "kept MB"):
            table.add_column(heading, justify="right")
        for row in rows:
            table.add_row(
                row.label,
                f"{row.ratio:.2f}",
                f"{row.p50_ms:.3g}",
                f"{row.p20_ms:.3g} - {row.p80_ms:.3g}",
                f"{row.peak_bytes / 1e6:.3g}",
                f"{row.saved_bytes / 1e6:.3g}" if mode == "training" else "",
            )
        console.print(table)
    for name, reason in result.left_out.items():
        console.print(f"not run: {name}: {reason}")
