"""Write a comparison: tables, a machine-readable document, plots and a page."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from markupsafe import Markup

from lowrank_ldu.analysis.comparison.columns import comparison_columns
from lowrank_ldu.analysis.comparison.heat_of_updates import heat_of_updates
from lowrank_ldu.analysis.comparison.lines import LOOKS
from lowrank_ldu.analysis.comparison.plots import draw_comparison
from lowrank_ldu.analysis.comparison.result import CheckpointComparison
from lowrank_ldu.analysis.comparison.scope import WHY_LEFT_OUT, narrow_matrices, sides_of, typical_matrices
from lowrank_ldu.analysis.comparison.summary import comparison_headlines, summary_rows
from lowrank_ldu.analysis.comparison.views import view_of_update
from lowrank_ldu.analysis.document import COMPARISON_FORMAT, json_document, results_as_tensors
from lowrank_ldu.analysis.report.columns import Row, cells
from lowrank_ldu.analysis.report.heat import ink, shade
from lowrank_ldu.analysis.report.panel import save_panels
from lowrank_ldu.analysis.report.tables import write_frame
from lowrank_ldu.analysis.report.templating import page_template
from lowrank_ldu.validation import check_instance

if TYPE_CHECKING:
    import os

    from lowrank_ldu.analysis.comparison.matrix import MatrixComparison
    from lowrank_ldu.analysis.comparison.pairs import PairResult
    from lowrank_ldu.analysis.comparison.plots import ComparisonPlots
    from lowrank_ldu.analysis.report.columns import Column


def write_comparison(comparison: CheckpointComparison, folder: str | os.PathLike[str]) -> None:
    """Write a comparison into an existing folder.

    The frame of its figures as compare.csv and .parquet, that of its tensors as compare-tensors.csv and .parquet,
    compare.json, compare.html, and in `figures` the plots over all matrices as PNG and SVG; those of an earlier
    comparison are replaced.

    Raises
    ------
    TypeError
        `comparison` is no `CheckpointComparison`.
    OSError
        A file cannot be written.
    """
    check_instance(comparison, "comparison", CheckpointComparison)
    folder = Path(folder)
    write_frame(comparison.figures, folder, "compare")
    write_frame(comparison.tensors, folder, "compare-tensors")
    document = json_document(COMPARISON_FORMAT, results_as_tensors(comparison))
    (folder / "compare.json").write_text(document, encoding="utf-8")
    plots = draw_comparison(comparison)
    save_panels(plots.panels, folder)
    (folder / "compare.html").write_text(render_comparison(comparison, plots), encoding="utf-8")


def render_comparison(comparison: CheckpointComparison, plots: ComparisonPlots) -> str:
    """Return a comparison as an HTML page.

    It loads nothing; everything from the checkpoints is escaped, and the plots are SVG made here.
    """
    rank = comparison.headline_rank
    table = comparison_columns(comparison.options.pivoting, rank)
    narrow = {tensor.name for tensor, _ in narrow_matrices(comparison)}
    return page_template("compare.html.j2", ink=ink, shade=shade).render(
        analysis=comparison,
        sides=sides_of(comparison),
        headlines=comparison_headlines(comparison),
        summary=summary_rows(comparison),
        heat=heat_of_updates(comparison),
        numbers={tensor.name: number for number, (tensor, _) in enumerate(comparison.matrices, 1)},
        overview=Markup(plots.overview.to_svg()),  # noqa: S704  # names in it are escaped
        panels=[Markup(panel.to_svg()) for panel in plots.shares],  # noqa: S704
        colors=LOOKS,
        columns=table,
        rows=[
            _row(table, tensor, matrix, WHY_LEFT_OUT if tensor.name in narrow else "")
            for tensor, matrix in comparison.matrices
        ],
        covered=len(typical_matrices(comparison)),
        rank=rank,
        view=lambda matrix: view_of_update(matrix, comparison),
    )


def _row(
    table: list[Column[MatrixComparison]], tensor: PairResult, matrix: MatrixComparison, note: str
) -> Row[MatrixComparison]:
    dtypes = dict.fromkeys([tensor.base_dtype, tensor.tuned_dtype])
    return Row(tensor.name, matrix, " → ".join(dtypes), cells(table, matrix), note)
