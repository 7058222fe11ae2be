"""The page: one HTML file that loads nothing."""

from __future__ import annotations

from pathlib import PurePath
from typing import TYPE_CHECKING

from markupsafe import Markup

from lowrank_ldu.analysis.report.columns import cells, columns
from lowrank_ldu.analysis.report.headlines import headlines
from lowrank_ldu.analysis.report.plot_conditioning import conditioning_panels
from lowrank_ldu.analysis.report.plot_errors import error_panels
from lowrank_ldu.analysis.report.plot_pivots import pivot_panels
from lowrank_ldu.analysis.report.plot_times import time_panels
from lowrank_ldu.analysis.report.templating import page_template

if TYPE_CHECKING:
    from collections.abc import Sequence

    from lowrank_ldu.analysis.run import Analysis


def render_page(analysis: Analysis, sections: Sequence[Markup] = ()) -> str:
    """Return the report as HTML, with `sections` before the analysis.

    Everything from the checkpoint is escaped; the plots are SVG made here.
    """
    table = columns(analysis.options.pivoting, analysis.headline_rank)
    return page_template("report.html.j2").render(
        analysis=analysis,
        title=PurePath(analysis.checkpoint).name,
        sections=sections,
        headlines=headlines(analysis),
        plots={
            name: [Markup(panel) for panel in panels]  # noqa: S704  # drawn from numbers alone
            for name, panels in {
                "errors": error_panels(analysis),
                "pivots": pivot_panels(analysis),
                "conditioning": conditioning_panels(analysis),
                "times": time_panels(analysis),
            }.items()
        },
        columns=table,
        rows=[(tensor, matrix, cells(table, matrix)) for tensor, matrix in analysis.matrices],
    )
