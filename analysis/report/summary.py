"""Show an analysis in a few lines, and in a notebook."""

from __future__ import annotations

import math
from pathlib import PurePath
from statistics import median
from typing import TYPE_CHECKING

from lowrank_ldu.analysis.report.columns import cells, columns
from lowrank_ldu.analysis.report.headlines import headlines
from lowrank_ldu.analysis.report.scope import headline_scope, svd_name
from lowrank_ldu.analysis.report.templating import page_template
from lowrank_ldu.formatting import duration, figure, printable

if TYPE_CHECKING:
    from lowrank_ldu.analysis.result import Analysis

# Of a table in a notebook.
_MOST_ROWS = 20


def analysis_text(analysis: Analysis) -> str:
    """Return an analysis in a few lines."""
    options, count = analysis.options, len(analysis.matrices)
    ranks = f"ranks {', '.join(map(str, options.ranks))}{' and full' if options.mode == 'exact' else ''}"
    lines = [
        f"Analysis of {_title(analysis)}: {count} matrices, {len(analysis.skipped)} others, {_time(analysis.seconds)}",
        f"{ranks}; {', '.join(options.pivoting)} pivoting; mode {options.mode}",
        *([_errors(analysis)] if count else []),
        "frames: tensors, figures, curves, targets; save(folder) writes the report",
    ]
    return "\n  ".join(lines)


def _title(analysis: Analysis) -> str:
    return printable(PurePath(analysis.checkpoint).name)


def _time(seconds: float) -> str:
    return duration(seconds) if math.isfinite(seconds) else figure(seconds)


def _errors(analysis: Analysis) -> str:
    scope = headline_scope(analysis)
    shown = []
    for pivoting in analysis.options.pivoting:
        items = [item.diagnostics for item in scope.ldu(pivoting)]
        error, refit = (
            figure(median(getattr(item, name) for item in items))
            for name in ("frobenius_error", "refit_frobenius_error")
        )
        shown.append(f"LDU {pivoting} {error} (refitted {refit})")
    least = median(item.diagnostics.svd_frobenius_error for item in scope.ldu(analysis.options.pivoting[0]))
    return f"median error at {scope.place}: {', '.join(shown)}, {svd_name(scope.matrices)} {figure(least)}"


def analysis_html(analysis: Analysis) -> str:
    """Return an analysis as HTML for a notebook: headlines and a table.

    Everything from the checkpoint is escaped.
    """
    table, rows, sentences = [], [], []
    if analysis.matrices:
        first = analysis.options.pivoting[0]
        wanted = {"recommended", "SVD error", f"{first} error", f"{first} refit", "near-best error"}
        table = [column for column in columns(analysis.options, analysis.headline_rank) if column.label in wanted]
        rows = [(tensor, matrix, cells(table, matrix)) for tensor, matrix in analysis.matrices[:_MOST_ROWS]]
        sentences = headlines(analysis)
    return page_template("summary.html.j2").render(
        title=f"LDU of {_title(analysis)}",
        headlines=sentences,
        headings=["tensor", "shape", "dtype", *(column.label for column in table)],
        rows=[
            [tensor.name, f"{matrix.m} x {matrix.n}", tensor.dtype, *(cell.text for cell in shown)]
            for tensor, matrix, shown in rows
        ],
        caption=f"At rank {analysis.headline_rank}." if rows else "",
        more=_more(len(analysis.matrices) - len(rows), len(analysis.skipped)),
    )


def _more(matrices: int, skipped: int) -> str:
    counts = {"more matrices": matrices, "tensors that were not analyzed": skipped}
    parts = [f"{count} {what}" for what, count in counts.items() if count]
    return f"{' and '.join(parts)} are in .tensors." if parts else ""
