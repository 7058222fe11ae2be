"""Show an analysis in a few lines, and in a notebook."""

from __future__ import annotations

import math
from pathlib import PurePath
from statistics import median
from typing import TYPE_CHECKING

from lowrank_ldu.analysis.report.columns import cells, columns
from lowrank_ldu.analysis.report.headlines import adapter_sentences, headlines
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
        f"Analysis of {_title(analysis)}: {count} {'matrix' if count == 1 else 'matrices'}, "
        f"{len(analysis.skipped)} {'other' if len(analysis.skipped) == 1 else 'others'}, "
        + time_in_words(analysis.seconds),
        f"{ranks}; {', '.join(options.pivoting)} pivoting; mode {options.mode}",
        *([f"computed on {printable(analysis.computed_on)}"] if options.device != "cpu" else []),
        *(adapter_sentences(analysis) if count else []),
        *([_errors(analysis)] if count else []),
        "frames: tensors, figures, curves, targets; save(folder) writes the report",
    ]
    return "\n  ".join(lines)


def _title(analysis: Analysis) -> str:
    return printable(PurePath(analysis.checkpoint).name)


def time_in_words(seconds: float) -> str:
    """Return seconds with a unit, whatever they are."""
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
    table = []
    if analysis.matrices:
        first = analysis.options.pivoting[0]
        wanted = {"recommended", "SVD error", f"{first} error", f"{first} refit", "near-best error"}
        table = [column for column in columns(analysis.options, analysis.headline_rank) if column.label in wanted]
    return notebook_html(
        f"LDU of {_title(analysis)}, at rank {analysis.headline_rank}",
        headlines(analysis) if analysis.matrices else [],
        [column.label for column in table],
        [
            (tensor.name, f"{matrix.m} x {matrix.n}", tensor.dtype, [cell.text for cell in cells(table, matrix)])
            for tensor, matrix in analysis.matrices
        ],
        others=len(analysis.skipped),
        what="not analyzed",
    )


def notebook_html(
    title: str,
    sentences: list[str],
    headings: list[str],
    rows: list[tuple[str, str, str, list[str]]],
    *,
    others: int,
    what: str,
) -> str:
    """Return results as HTML for a notebook.

    Everything given is escaped.

    Parameters
    ----------
    title : str
    sentences : list of str
    headings : list of str
        Of the cells of each row.
    rows : list of tuple of (str, str, str, list of str)
        Name, shape, dtype and cells of each matrix, of which the first ones are shown.
    others : int
        How many tensors there are beside them.
    what : str
        What these are.
    """
    more = max(len(rows) - _MOST_ROWS, 0)
    counts = {"more matrices": more, f"tensors that were {what}": others}
    parts = [f"{count} {name}" for name, count in counts.items() if count]
    return page_template("summary.html.j2").render(
        title=title,
        headlines=sentences,
        headings=["tensor", "shape", "dtype", *headings],
        rows=[[*row[:3], *row[3]] for row in rows[:_MOST_ROWS]],
        more=f"{' and '.join(parts)} are in .tensors." if parts else "",
    )
