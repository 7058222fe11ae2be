"""The page: one HTML file that loads nothing."""

from __future__ import annotations

from pathlib import PurePath
from typing import TYPE_CHECKING

from markupsafe import Markup

from lowrank_ldu.analysis.report.columns import cells, columns
from lowrank_ldu.analysis.report.headlines import headlines
from lowrank_ldu.analysis.report.heat import heat_map, ink, shade
from lowrank_ldu.analysis.report.panel import COLORS
from lowrank_ldu.analysis.report.scope import svd_name
from lowrank_ldu.analysis.report.templating import page_template
from lowrank_ldu.analysis.report.views import view_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from lowrank_ldu.analysis.checkpoint import Analysis
    from lowrank_ldu.analysis.report.plots import Plots


def render_page(analysis: Analysis, plots: Plots, sections: Sequence[Markup] = ()) -> str:
    """Return the report as HTML, with `sections` before the analysis.

    Everything from the checkpoint is escaped; the plots are SVG made here.
    """
    table = columns(analysis.options, analysis.headline_rank)
    return page_template("report.html.j2", ink=ink, shade=shade).render(
        analysis=analysis,
        title=PurePath(analysis.checkpoint).name,
        sections=sections,
        headlines=headlines(analysis),
        svd=svd_name(matrix for _, matrix in analysis.matrices),
        heat=heat_map(analysis),
        plots={
            name: [Markup(panel.to_svg()) for panel in panels]  # noqa: S704  # names in it are escaped
            for name, panels in vars(plots).items()
        },
        colors=COLORS,
        columns=table,
        rows=[(tensor, matrix, cells(table, matrix)) for tensor, matrix in analysis.matrices],
        numbers={tensor.name: number for number, (tensor, _) in enumerate(analysis.matrices, 1)},
        view=lambda matrix: view_of(matrix, analysis),
    )
