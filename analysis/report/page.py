"""Write the report of an analysis: tables, document, plots and page."""

from __future__ import annotations

from pathlib import Path, PurePath
from typing import TYPE_CHECKING

from markupsafe import Markup

from lowrank_ldu.analysis.document import ANALYSIS_FORMAT, json_document, results_as_tensors
from lowrank_ldu.analysis.report.columns import Row, cells, columns
from lowrank_ldu.analysis.report.headlines import headlines
from lowrank_ldu.analysis.report.heat import ink, shade
from lowrank_ldu.analysis.report.heat_of_advice import heat_map
from lowrank_ldu.analysis.report.panel import COLORS, save_panels
from lowrank_ldu.analysis.report.plots import draw_plots
from lowrank_ldu.analysis.report.scope import svd_name
from lowrank_ldu.analysis.report.tables import write_tables
from lowrank_ldu.analysis.report.templating import page_template
from lowrank_ldu.analysis.report.views import view_of
from lowrank_ldu.analysis.report.where import timed_on
from lowrank_ldu.analysis.result import Analysis
from lowrank_ldu.files import whole_folder
from lowrank_ldu.validation import check_flag, check_instance, check_path

if TYPE_CHECKING:
    import os
    from collections.abc import Sequence

    from lowrank_ldu.analysis.report.plots import Plots


def write_report(analysis: Analysis, folder: str | os.PathLike[str], sections: Sequence[Markup] = ()) -> None:
    """Write the files of a report into an existing folder.

    The frames of the analysis as `tensors`, `figures`, `curves` and `targets`, each as `.csv` and `.parquet`;
    `analysis.json`, which holds everything and which `Analysis.load` reads; `report.html`, a page that needs nothing
    else; in `figures` the plots over all matrices as PNG and SVG.

    Parameters
    ----------
    analysis : Analysis
    folder : str or os.PathLike
        Exists. Files of these names in it are replaced.
    sections : sequence of markupsafe.Markup
        HTML to show before the analysis; what is untrusted in it is escaped already.

    Raises
    ------
    TypeError
        `analysis` is no `Analysis`.
    OSError
        A file cannot be written.
    """
    check_instance(analysis, "analysis", Analysis)
    folder = Path(folder)
    write_tables(analysis, folder)
    (folder / "analysis.json").write_text(analysis_json(analysis), encoding="utf-8")
    plots = draw_plots(analysis)
    save_panels(plots.panels, folder)
    (folder / "report.html").write_text(render_report(analysis, plots, sections), encoding="utf-8")


def save_report(
    analysis: Analysis, folder: str | os.PathLike[str], *, overwrite: bool, otherwise: str = "overwrite=True"
) -> None:
    """Write a report, whole or not at all.

    Parameters
    ----------
    analysis : Analysis
    folder : str or os.PathLike
        Made if it is not there.
    overwrite : bool
        Replace files of the same names in it.
    otherwise : str
        What the caller's user gives to have files replaced, for the message.
    """
    overwrite = check_flag(overwrite, "overwrite")
    with whole_folder(check_path(folder, "folder"), overwrite=overwrite, otherwise=otherwise) as made:
        write_report(analysis, made)


def analysis_json(analysis: Analysis) -> str:
    """Return the analysis as strict JSON.

    Each dataclass is an object with the names of its fields, but for the results, which are "tensors".
    """
    return json_document(ANALYSIS_FORMAT, results_as_tensors(analysis))


def render_report(analysis: Analysis, plots: Plots, sections: Sequence[Markup] = ()) -> str:
    """Return the report as an HTML page.

    `sections` come before the analysis. Everything from the checkpoint is escaped; the plots are SVG made here.
    """
    table = columns(analysis.options, analysis.headline_rank)
    return page_template("report.html.j2", ink=ink, shade=shade).render(
        analysis=analysis,
        title=PurePath(analysis.checkpoint).name,
        sections=sections,
        headlines=headlines(analysis),
        timed_on=timed_on(analysis),
        svd=svd_name(matrix for _, matrix in analysis.matrices),
        heat=heat_map(analysis),
        plots={
            name: [Markup(panel.to_svg()) for panel in panels]  # noqa: S704  # names in it are escaped
            for name, panels in vars(plots).items()
        },
        colors=COLORS,
        columns=table,
        rows=[Row(tensor.name, matrix, tensor.dtype, cells(table, matrix)) for tensor, matrix in analysis.matrices],
        numbers={tensor.name: number for number, (tensor, _) in enumerate(analysis.matrices, 1)},
        view=lambda matrix: view_of(matrix, analysis),
    )
