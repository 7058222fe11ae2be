"""Write a comparison: a table, a machine-readable document and a page."""

from __future__ import annotations

from pathlib import Path, PurePath
from typing import TYPE_CHECKING

import numpy as np
from markupsafe import Markup

from lowrank_ldu.analysis.comparison.run import CheckpointComparison
from lowrank_ldu.analysis.comparison.summary import comparison_headlines, summary_rows
from lowrank_ldu.analysis.document import json_document, results_as_tensors
from lowrank_ldu.analysis.measures.curves import sample_ranks
from lowrank_ldu.analysis.report.columns import Column, cells
from lowrank_ldu.analysis.report.panel import COLORS, Panel, draw_band
from lowrank_ldu.analysis.report.tables import write_frame
from lowrank_ldu.analysis.report.templating import page_template
from lowrank_ldu.validation import check_instance

if TYPE_CHECKING:
    import os
    from collections.abc import Callable, Iterable, Iterator

    from lowrank_ldu.analysis.comparison.matrix import MatrixComparison
    from lowrank_ldu.decomposition import Pivoting

    _Value = Callable[[MatrixComparison], float | None]
    _CurveOf = Callable[[MatrixComparison], list[float | None]]


def comparison_columns(strategies: Iterable[Pivoting], rank: int) -> list[Column[MatrixComparison]]:
    """Return the columns of the page's table.

    They come after the tensor's name, shape and dtypes; `rank` is that of the partial bases.
    """

    def at(matrix: MatrixComparison) -> int:
        return min(rank, matrix.full_rank)

    listed: list[Column[MatrixComparison]] = [
        Column("relative norm", "‖update‖_F / ‖base‖_F.", lambda matrix: matrix.relative_norm),
        Column("stable rank", "‖update‖²_F / ‖update‖²_2, from 1 to k.", lambda matrix: matrix.spectrum.stable_rank),
        Column(
            "effective rank",
            "exp of the entropy of the update's singular values scaled to sum 1, from 1 to k.",
            lambda matrix: matrix.spectrum.effective_rank,
        ),
    ]
    for pivoting in strategies:
        listed += [
            Column(
                f"{pivoting}, {rank}",
                f"Share of ‖update‖²_F that the diagonal of the base's first {rank} LDU terms with {pivoting} pivoting "
                "can express at best (least squares).",
                _of_ldu(pivoting, at),
            ),
            Column(
                f"{pivoting}, full",
                f"The same with all k terms of {pivoting} pivoting.",
                _of_ldu(pivoting, lambda matrix: matrix.full_rank),
            ),
        ]
    listed += [
        Column(
            f"SVD, {rank}",
            f"The same with a diagonal between the base's first {rank} singular vectors.",
            lambda matrix: matrix.svd.explained[at(matrix)],
        ),
        Column(
            "SVD, full",
            "The same with all k singular vectors.",
            lambda matrix: matrix.svd.explained[matrix.full_rank],
        ),
        Column(
            "random, full",
            "What k terms are expected to hold of a random update: k / (m n).",
            lambda matrix: matrix.random(matrix.full_rank),
        ),
        Column(
            "LoRA, 1",
            "Share that the best matrix of rank 1 expresses; LoRA of rank 1 trains m + n numbers, the least it can.",
            lambda matrix: matrix.spectrum.energy[1],
        ),
        Column(
            f"LoRA, {rank}",
            f"The same of rank {rank}, with {rank} (m + n) numbers.",
            lambda matrix: matrix.spectrum.energy[at(matrix)],
        ),
    ]
    return listed


def _of_ldu(pivoting: Pivoting, at: Callable[[MatrixComparison], int]) -> _Value:
    return lambda matrix: matrix.ldu[pivoting].explained[at(matrix)]


_SHARE = "share of ‖update‖² explained"
_LORA_COLOR = "#C78500"
_RANDOM_COLOR = "#666666"
# Least share on a logarithmic axis: smaller ones would flatten all others.
_LEAST_DRAWN = 1e-6


def share_panels(comparison: CheckpointComparison) -> list[str]:
    """Draw shares against rank, twice, and against trained numbers."""
    panels = [_against_rank(comparison, logarithmic=False), _against_rank(comparison, logarithmic=True)]
    return [panel.to_svg() for panel in (*panels, _against_numbers(comparison))]


def _lines(comparison: CheckpointComparison) -> Iterator[tuple[str, str, str, _CurveOf]]:
    for pivoting in comparison.options.pivoting:
        yield f"LDU, {pivoting} pivoting", COLORS[pivoting], "-", _curve_of_ldu(pivoting)
    yield "base's singular vectors", COLORS["svd"], "-", lambda matrix: matrix.svd.curve
    yield "LoRA (best possible)", _LORA_COLOR, "--", lambda matrix: list(matrix.lora_curve)
    yield "random update", _RANDOM_COLOR, ":", lambda matrix: [matrix.random(rank) for rank in matrix.curve_ranks]


def _curve_of_ldu(pivoting: Pivoting) -> _CurveOf:
    return lambda matrix: matrix.ldu[pivoting].curve


def _against_rank(comparison: CheckpointComparison, *, logarithmic: bool) -> Panel:
    scale = "logarithmic" if logarithmic else "linear"
    panel = Panel(f"explained-{scale}", f"Against rank, {scale}", "rank r", _SHARE)
    matrices = [matrix for _, matrix in comparison.matrices]
    k = max(matrix.full_rank for matrix in matrices)
    for label, color, style, curve in _lines(comparison):
        curves = [(matrix.curve_ranks, curve(matrix)) for matrix in matrices]
        draw_band(panel, sample_ranks(k), curves, label=label, color=color, style=style)
    panel.mark_ranks(comparison.options.ranks, k)
    _limit(panel, logarithmic=logarithmic)
    panel.add_legend()
    return panel


def _against_numbers(comparison: CheckpointComparison) -> Panel:
    """Draw shares against trained numbers.

    Divided by the least number that LoRA trains, so that matrices of every shape fit.
    """
    panel = Panel("explained-numbers", "Against trained numbers", "trained numbers / (m + n)", _SHARE)
    matrices = [matrix for _, matrix in comparison.matrices]
    for label, color, style, curve in _lines(comparison):
        whole = label.startswith("LoRA")  # in steps of m + n; a diagonal and its scale have r + 1
        curves = [
            (
                [rank if whole else (rank + 1) / matrix.least_lora for rank in matrix.curve_ranks],
                curve(matrix),
            )
            for matrix in matrices
        ]
        ends = [end for places, _ in curves for end in (places[0], places[-1])]
        grid = [float(place) for place in np.geomspace(min(ends), max(ends), 96)]
        draw_band(panel, grid, curves, label=label, color=color, style=style)
    panel.make_logarithmic(x=True)
    _limit(panel, logarithmic=True)
    panel.add_legend()
    return panel


def _limit(panel: Panel, *, logarithmic: bool) -> None:
    if not logarithmic:
        panel.axes.set_ylim(0, 1.02)
        return
    panel.make_logarithmic(y=True)
    panel.axes.set_ylim(max(panel.axes.get_ylim()[0], _LEAST_DRAWN), 1.3)


def write_comparison(comparison: CheckpointComparison, folder: str | os.PathLike[str]) -> None:
    """Write a comparison into an existing folder.

    The frame of its figures as compare.csv and .parquet, that of its tensors as compare-tensors.csv and .parquet,
    compare.json and compare.html; those of an earlier comparison are replaced.

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
    document = json_document("lowrank-ldu comparison 1", results_as_tensors(comparison))
    (folder / "compare.json").write_text(document, encoding="utf-8")
    (folder / "compare.html").write_text(render_comparison(comparison), encoding="utf-8")


def render_comparison(comparison: CheckpointComparison) -> str:
    """Return a comparison as an HTML page.

    It loads nothing; everything from the checkpoints is escaped.
    """
    rank = comparison.headline_rank
    table = comparison_columns(comparison.options.pivoting, rank)
    return page_template("compare.html.j2").render(
        analysis=comparison,
        titles=[PurePath(path).name for path in (comparison.base, comparison.tuned)],
        headlines=comparison_headlines(comparison),
        summary=summary_rows(comparison),
        panels=[Markup(panel) for panel in share_panels(comparison)],  # noqa: S704  # drawn from numbers alone
        columns=table,
        rows=[(tensor, matrix, cells(table, matrix)) for tensor, matrix in comparison.matrices],
        rank=rank,
    )
