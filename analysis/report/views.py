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
class View:
    """Hold the texts and charts of one matrix.

    Attributes
    ----------
    advice : str
        What is recommended.
    svd : str
        What the black line of the errors is.
    needed : list of tuple of (str, list of str)
        For each method, the smallest ranks for the target errors, and what they save.
    facts : list of tuple of (str, str)
        What is true of the matrix whatever the rank.
    charts : list of Chart
        Errors, and pivots.
    methods : list of str
        Headings of the columns of `figures`.
    figures : list of tuple of (str, list of str)
        For each field of `Diagnostics`, its figure by method.
    """

    advice: str
    svd: str
    needed: list[tuple[str, list[str]]]
    facts: list[tuple[str, str]]
    charts: list[Chart]
    methods: list[str]
    figures: list[tuple[str, list[str]]]


def view_of(matrix: MatrixAnalysis, analysis: Analysis) -> View:
    """Return the view of a matrix."""
    records = [measurement.diagnostics for measurement in matrix.measurements]
    figures = [(name.replace("_", " "), [figure(getattr(item, name)) for item in records]) for name in _OF_A_RANK]
    figures.append(("time", [duration(measurement.seconds) for measurement in matrix.measurements]))
    return View(
        advice=advice_of(matrix).text,
        svd=best_name([matrix]),
        needed=_needed(matrix),
        facts=_facts(matrix),
        charts=_charts(matrix, analysis),
        methods=[_method(measurement) for measurement in matrix.measurements],
        figures=figures,
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
