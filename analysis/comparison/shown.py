"""Show a comparison in a few lines, and in a notebook."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lowrank_ldu.analysis.comparison.columns import comparison_columns
from lowrank_ldu.analysis.comparison.scope import sides_of
from lowrank_ldu.analysis.comparison.summary import comparison_headlines, summary_rows
from lowrank_ldu.analysis.report.columns import cells
from lowrank_ldu.analysis.report.summary import notebook_html, time_in_words
from lowrank_ldu.formatting import figure, printable

if TYPE_CHECKING:
    from lowrank_ldu.analysis.comparison.result import CheckpointComparison


def comparison_text(comparison: CheckpointComparison) -> str:
    """Return a comparison in a few lines."""
    options, changed = comparison.options, len(comparison.matrices)
    lines = [
        f"Comparison of {_title(comparison)}: {changed} matrices changed, {len(comparison.others)} others, "
        + time_in_words(comparison.seconds),
        f"ranks {', '.join(map(str, options.ranks))} and full; {', '.join(options.pivoting)} pivoting",
        *([f"computed on {printable(comparison.computed_on)}"] if options.device != "cpu" else []),
        *([_explained(comparison)] if changed else []),
        "frames: tensors, figures; save(folder) writes the report",
    ]
    return "\n  ".join(lines)


def _title(comparison: CheckpointComparison) -> str:
    return " and ".join(f"{side} {printable(name)}" for side, name in sides_of(comparison)._asdict().items())


def _explained(comparison: CheckpointComparison) -> str:
    rows = [row for row in summary_rows(comparison) if row.place == "full rank"]
    shares = ", ".join(f"{row.method} {figure(row.explained.median)}" for row in rows)
    return f"median share of the update at full rank: {shares}"


def comparison_html(comparison: CheckpointComparison) -> str:
    """Return a comparison as HTML for a notebook: headlines and a table.

    Everything from the checkpoints is escaped.
    """
    table = comparison_columns(comparison.options.pivoting, comparison.headline_rank) if comparison.matrices else []
    return notebook_html(
        f"Update between {_title(comparison)}",
        comparison_headlines(comparison) if comparison.matrices else [],
        [column.label for column in table],
        [
            (tensor.name, f"{matrix.m} x {matrix.n}", tensor.base_dtype, [cell.text for cell in cells(table, matrix)])
            for tensor, matrix in comparison.matrices
        ],
        others=len(comparison.others),
        what="not compared",
    )
