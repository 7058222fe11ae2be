"""Prepare the view of one matrix."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import TYPE_CHECKING

from lowrank_ldu.analysis.measures.recommendation import METHODS
from lowrank_ldu.analysis.report.advice import advice_of
from lowrank_ldu.analysis.report.chart import Chart, Series, draw_chart
from lowrank_ldu.analysis.report.scope import (
    best_name,
    energy,
    least_error,
    needed_and_saved,
    stable_rank,
    svd_name,
)
from lowrank_ldu.diagnostics import Diagnostics
from lowrank_ldu.formatting import duration, figure, interval

if TYPE_CHECKING:
    from lowrank_ldu.analysis.measures.matrix import MatrixAnalysis, Measurement
    from lowrank_ldu.analysis.result import Analysis

# Fields of the whole matrix, or shown in the heading of the column.
_NOT_OF_A_RANK = {
    "method", "pivoting", "rank", "m", "n", "dtype", "frobenius_norm", "spectral_norm",
    "zero_frobenius_error", "zero_spectral_error", "dense_apply_flops", "dense_bytes",
}  # fmt: skip
_OF_A_RANK = [field.name for field in fields(Diagnostics) if field.name not in _NOT_OF_A_RANK]
_LEAST_ERROR = 1e-2  # lower errors leave the chart: full rank would flatten all others


@dataclass(frozen=True)
class ViewTable:
    """Hold a table of a view.

    Attributes
    ----------
    label : str
        What it is, for who does not see it.
    headings : list of str
        The first one is that of the rows' names.
    rows : list of tuple of (str, list of str)
        The name of each, and its cells.
    narrow : bool
        Whether it has few columns.
    """

    label: str
    headings: list[str]
    rows: list[tuple[str, list[str]]]
    narrow: bool = False


@dataclass(frozen=True)
class View:
    """Hold the texts and charts of one matrix.

    Attributes
    ----------
    summary : list of tuple of (str, str)
        Sentences: what stands out, and what follows it.
    charts : list of Chart
    legend : list of tuple of (str, str)
        The look of each line, as in the charts, and its text.
    facts : list of tuple of (str, str)
        What is true of the matrix whatever the rank.
    tables : list of ViewTable
    """

    summary: list[tuple[str, str]]
    charts: list[Chart]
    legend: list[tuple[str, str]]
    facts: list[tuple[str, str]]
    tables: list[ViewTable]


def view_of(matrix: MatrixAnalysis, analysis: Analysis) -> View:
    """Return the view of a matrix."""
    records = [measurement.diagnostics for measurement in matrix.measurements]
    figures = [(name.replace("_", " "), [figure(getattr(item, name)) for item in records]) for name in _OF_A_RANK]
    figures.append(("time", [duration(measurement.seconds) for measurement in matrix.measurements]))
    reason = matrix.recommendation.reason
    targets = [str(error) for error in analysis.options.targets]
    methods = [_method(measurement) for measurement in matrix.measurements]
    return View(
        summary=[(f"Recommended: {advice_of(matrix).text}.", f"{reason[:1].upper()}{reason[1:]}.")],
        charts=_charts(matrix, analysis),
        legend=[
            ("svd", f"━ {best_name([matrix])}"),
            *(
                line
                for pivoting in analysis.options.pivoting
                for line in ((pivoting, f"━ LDU {pivoting}"), (pivoting, f"╍ {pivoting}, refitted diagonal"))
            ),
            ("zero", "┄ zero matrix"),
        ],
        facts=_facts(matrix),
        tables=[
            ViewTable(
                "Ranks for target errors",
                ["smallest rank (and numbers) for an error of", *targets],
                _needed(matrix),
                narrow=True,
            ),
            ViewTable("All figures", ["figure", *methods], figures),
        ],
    )


def _needed(matrix: MatrixAnalysis) -> list[tuple[str, list[str]]]:
    rows: dict[str, list[str]] = {}
    for item in matrix.needed:
        how = f" {item.pivoting}{', refitted' if item.refit else ''}" if item.pivoting else ""
        rows.setdefault(f"{METHODS[item.method]}{how}", []).append(needed_and_saved(item, matrix))
    return list(rows.items())


def _facts(matrix: MatrixAnalysis) -> list[tuple[str, str]]:
    spectrum, whole = matrix.spectrum, matrix.measurements[0].diagnostics
    facts = [
        ("computed in", whole.dtype),
        ("‖W‖_F", figure(whole.frobenius_norm)),
        ("largest singular value", f"{'≥ ' if matrix.svd_niter is not None else ''}{figure(spectrum.largest)}"),
        ("smallest singular value", figure(spectrum.smallest)),
        ("stable rank", stable_rank(matrix)),
        ("effective rank", figure(spectrum.effective_rank)),
        ("entropy of the spectrum", figure(spectrum.entropy)),
        *((f"energy at rank {rank}", energy(matrix, rank)) for rank in spectrum.energy),
        *((f"least error at rank {rank}", interval(*least_error(matrix, rank))) for rank in spectrum.energy),
        (f"time of {svd_name([matrix])}", duration(matrix.svd_seconds)),
    ]
    return [(name, value) for name, value in facts if value != figure(None)]


def _charts(matrix: MatrixAnalysis, analysis: Analysis) -> list[Chart]:
    ranks = analysis.options.ranks
    errors = [Series("svd", matrix.svd_curve)]
    for pivoting, curve in matrix.curves.items():
        errors += [Series(pivoting, curve.error), Series(f"{pivoting} dashed", curve.refit_error)]
    pivots = [Series(pivoting, curve.pivot) for pivoting, curve in matrix.curves.items()]
    return [
        draw_chart(
            ("Error", "rank r", "relative Frobenius error"),
            matrix.curve_ranks,
            errors,
            marked_ranks=ranks,
            least=_LEAST_ERROR,
            mark=1.0,
        ),
        draw_chart(("Pivots", "step", "|pivot|"), matrix.curve_ranks, pivots, marked_ranks=ranks),
    ]


def _method(measurement: Measurement) -> str:
    item = measurement.diagnostics
    others = {"pissa": "exact PiSSA" if measurement.exact else "quick PiSSA", "ldu_lowrank": "near-best LDU"}
    name = others.get(item.method, f"LDU {item.pivoting}")
    return f"{name}, r\N{NO-BREAK SPACE}=\N{NO-BREAK SPACE}{item.rank}"
