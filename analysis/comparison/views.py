"""Prepare the view of one matrix's update."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from lowrank_ldu.analysis.comparison.lines import lines_of
from lowrank_ldu.analysis.comparison.scope import sides_of
from lowrank_ldu.analysis.report.chart import Chart, Series, draw_chart
from lowrank_ldu.analysis.report.views import View, ViewTable
from lowrank_ldu.formatting import figure, printable

if TYPE_CHECKING:
    from lowrank_ldu.analysis.comparison.lines import Line
    from lowrank_ldu.analysis.comparison.matrix import MatrixComparison
    from lowrank_ldu.analysis.comparison.result import CheckpointComparison
    from lowrank_ldu.analysis.options import CompareOptions

# Lower shares and errors leave the charts.
_LEAST_SHARE, _LEAST_ERROR = 1e-6, 1e-2
_SIGNS = {"-": "━", "--": "╍", ":": "┄"}
_CLASSES = {"-": "", "--": " dashed", ":": " dotted"}


def view_of_update(matrix: MatrixComparison, comparison: CheckpointComparison) -> View:
    """Return the view of a matrix's update."""
    options, sides = comparison.options, sides_of(comparison)
    lines = lines_of(options.pivoting)
    ranks = list(matrix.svd.explained)
    labels = [f"{rank} (full)" if rank == matrix.full_rank else str(rank) for rank in ranks]
    bases = {f"LDU, {pivoting}": terms for pivoting, terms in matrix.ldu.items()} | {"SVD basis": matrix.svd}
    return View(
        summary=[(f"Update from base {printable(sides.base)} to tuned {printable(sides.tuned)}.", "")],
        charts=_charts(matrix, options, lines),
        legend=[(line.method, f"{_SIGNS[line.style]} {line.label}") for line in lines],
        facts=_facts(matrix),
        tables=[
            ViewTable(
                "Shares of the update",
                ["share of the update, at rank", *labels],
                [(line.short, [figure(line.share(matrix, rank)) for rank in ranks]) for line in lines],
                narrow=True,
            ),
            ViewTable(
                "Trained numbers",
                ["trained numbers, at rank", *labels],
                [
                    ("diagonal and scale", [f"{rank + 1:,}" for rank in ranks]),
                    ("LoRA", [f"{rank * matrix.least_lora:,}" for rank in ranks]),
                ],
                narrow=True,
            ),
            ViewTable(
                "Independent terms",
                ["independent terms of the base, at rank", *labels],
                [(name, [str(terms.independent[rank]) for rank in ranks]) for name, terms in bases.items()],
                narrow=True,
            ),
        ],
    )


def _charts(matrix: MatrixComparison, options: CompareOptions, lines: list[Line]) -> list[Chart]:
    curves = {line: line.curve(matrix) for line in lines}
    return [
        draw_chart(
            ("Share of the update", "rank r", "share of ‖update‖² explained"),
            matrix.curve_ranks,
            [Series(_look(line), curve) for line, curve in curves.items()],
            marked_ranks=options.ranks,
            least=_LEAST_SHARE,
        ),
        draw_chart(
            ("Error of the nearest", "rank r", "‖update - nearest‖ / ‖update‖"),
            matrix.curve_ranks,
            [Series(_look(line), [_error(share) for share in curve]) for line, curve in curves.items()],
            marked_ranks=options.ranks,
            least=_LEAST_ERROR,
            mark=1.0,
        ),
    ]


def _look(line: Line) -> str:
    return line.method + _CLASSES[line.style]


def _error(share: float | None) -> float | None:
    return None if share is None else math.sqrt(max(1.0 - share, 0.0))


def _facts(matrix: MatrixComparison) -> list[tuple[str, str]]:
    spectrum = matrix.spectrum
    return [
        ("‖base‖_F", figure(matrix.base_norm)),
        ("‖update‖_F", figure(matrix.update_norm)),
        ("‖update‖_F / ‖base‖_F", figure(matrix.relative_norm)),
        ("stable rank of the update", figure(spectrum.stable_rank)),
        ("effective rank of the update", figure(spectrum.effective_rank)),
        ("largest singular value", figure(spectrum.largest)),
        ("smallest singular value", figure(spectrum.smallest)),
        ("LoRA of rank 1 holds", figure(spectrum.energy[1])),
    ]
