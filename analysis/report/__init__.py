"""What an analysis leaves on disk: two tables, a machine-readable document, plots and a page to read."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lowrank_ldu.analysis.report.document import to_json
from lowrank_ldu.analysis.report.page import render_page
from lowrank_ldu.analysis.report.plots import draw_plots
from lowrank_ldu.analysis.report.tables import write_figures, write_tensors

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from markupsafe import Markup

    from lowrank_ldu.analysis.checkpoint import Analysis

__all__ = ["write_report"]


def write_report(analysis: Analysis, folder: Path, sections: Sequence[Markup] = ()) -> None:
    """Write the files of a report into an existing folder.

    `figures.csv` has a row for each tensor, method and rank; `tensors.csv` a row for each tensor, the skipped ones
    too; both are there as `.parquet` too. `analysis.json` holds everything; `report.html` is a page that needs nothing
    else; `figures` has the plots over all matrices as PNG and SVG.

    Parameters
    ----------
    analysis : Analysis
    folder : pathlib.Path
    sections : sequence of markupsafe.Markup
        HTML to show before the analysis; what is untrusted in it is escaped already.

    Raises
    ------
    OSError
        A file cannot be written.
    """
    write_figures(analysis, folder)
    write_tensors(analysis, folder)
    (folder / "analysis.json").write_text(to_json(analysis), encoding="utf-8")
    plots = draw_plots(analysis)
    (folder / "figures").mkdir(exist_ok=True)
    plots.save(folder / "figures")
    (folder / "report.html").write_text(render_page(analysis, plots, sections), encoding="utf-8")
