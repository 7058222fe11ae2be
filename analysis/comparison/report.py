"""What a comparison leaves on disk: a table, a machine-readable document and a page to read."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import PurePath
from typing import TYPE_CHECKING

from markupsafe import Markup

from lowrank_ldu.analysis.comparison.columns import columns
from lowrank_ldu.analysis.comparison.plots import explained_panels
from lowrank_ldu.analysis.comparison.summary import headlines, summary_rows
from lowrank_ldu.analysis.comparison.table import write_table
from lowrank_ldu.analysis.report.columns import cells
from lowrank_ldu.analysis.report.document import strict_json
from lowrank_ldu.analysis.report.templating import page_template

if TYPE_CHECKING:
    from pathlib import Path

    from lowrank_ldu.analysis.comparison.run import CheckpointComparison


def write_comparison(comparison: CheckpointComparison, folder: Path) -> None:
    """Write compare.csv, compare.json and compare.html into an existing folder.

    Raises
    ------
    OSError
        A file cannot be written.
    """
    write_table(comparison, folder / "compare.csv")
    document = strict_json("lowrank-ldu comparison 1", asdict(comparison))
    (folder / "compare.json").write_text(document, encoding="utf-8")
    (folder / "compare.html").write_text(render_comparison(comparison), encoding="utf-8")


def render_comparison(comparison: CheckpointComparison) -> str:
    """Return the page, which loads nothing; what comes from the checkpoints is escaped."""
    rank = _table_rank(comparison)
    table = columns(comparison.options.pivoting, rank)
    return page_template("compare.html.j2").render(
        analysis=comparison,
        titles=[PurePath(path).name for path in (comparison.base, comparison.tuned)],
        headlines=headlines(comparison),
        summary=summary_rows(comparison),
        panels=[Markup(panel) for panel in explained_panels(comparison)],  # noqa: S704  # drawn from numbers alone
        columns=table,
        rows=[(tensor, matrix, cells(table, matrix)) for tensor, matrix in comparison.matrices],
        rank=rank,
    )


def _table_rank(comparison: CheckpointComparison) -> int:
    """Return the largest rank asked for that some matrix does not reach in full."""
    largest = max(matrix.full_rank for _, matrix in comparison.matrices)
    ranks = comparison.options.ranks
    return max((rank for rank in ranks if rank < largest), default=ranks[-1])
