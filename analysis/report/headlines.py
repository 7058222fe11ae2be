"""Say in sentences what the figures of an analysis show."""

from __future__ import annotations

from statistics import median
from typing import TYPE_CHECKING

from lowrank_ldu.analysis.report.advice import by_method, verdict
from lowrank_ldu.analysis.report.coverage import coverage
from lowrank_ldu.analysis.report.scope import Scope, headline_scope, least_error, seconds_of, seconds_of_svd, svd_name
from lowrank_ldu.formatting import duration, figure, interval

if TYPE_CHECKING:
    from collections.abc import Iterable

    from lowrank_ldu.analysis.measures.matrix import MatrixAnalysis, Measurement
    from lowrank_ldu.analysis.result import Analysis
    from lowrank_ldu.decomposition import Pivoting


def headlines(analysis: Analysis) -> list[str]:
    """Return the results of an analysis in sentences."""
    rank = analysis.headline_rank
    matrices = [matrix for _, matrix in analysis.matrices]
    scope = headline_scope(analysis)
    target = max(analysis.options.targets)
    first = " ".join([verdict(matrices, target), *adapter_sentences(analysis)])
    sentences = [first, by_method(matrices, target), coverage(analysis)]
    if len(scope.matrices) < len(matrices):
        sentences.append(
            f"{len(scope.matrices)} of {len(matrices)} matrices have a full rank above {rank}; what is said about rank "
            f"{rank} is about those."
        )
    sentences += [_error_sentence(scope, pivoting) for pivoting in analysis.options.pivoting]
    if scope.rank is not None:
        sentences.append(_near_best_sentence(scope, scope.rank))
    sentences.append(_conditioning_sentence(_conditioning_scope(scope, matrices), analysis.options.pivoting))
    if seconds_of_svd(scope.matrices):
        sentences.append(_time_sentence(scope, analysis))
    sentences.append(_tie_sentence(scope, analysis.options.pivoting))
    return sentences


def adapter_sentences(analysis: Analysis) -> list[str]:
    """Return a sentence on the adapter, where the matrices are its updates."""
    stored = analysis.adapter_numbers
    if stored is None:
        return []
    whole = sum(matrix.size for _, matrix in analysis.matrices)
    sentence = (
        f"The matrices are the updates of an adapter, which itself stores {stored:,} numbers, r (m + n) of each: "
        f"{stored / whole:.0%} of the {whole:,} that sizes here are measured against."
    )
    return [sentence]


def _median(values: Iterable[float]) -> str:
    return figure(median(values))


def _error_sentence(scope: Scope, pivoting: Pivoting) -> str:
    figures = [measurement.diagnostics for measurement in scope.ldu(pivoting)]
    worse = sum(item.frobenius_error > 1 for item in figures)
    error = _median(item.frobenius_error for item in figures)
    if scope.rank is None:
        return (
            f"At full rank LDU with {pivoting} pivoting reproduces the matrices to a median relative error of {error}."
        )
    refit = _median(item.refit_frobenius_error for item in figures)
    bounds = [least_error(matrix, scope.rank) for matrix in scope.matrices]
    best = interval(median(low for low, _ in bounds), median(high for _, high in bounds))
    return (
        f"At {scope.place} the leading LDU terms with {pivoting} pivoting are worse than the zero matrix in {worse} of "
        f"{len(figures)} matrices: their median relative error is {error}, where the zero matrix has 1 and the "
        f"best possible, the truncated SVD, {best}. Refitting the diagonal by least squares brings it to {refit}."
    )


def _near_best_sentence(scope: Scope, rank: int) -> str:
    found = [matrix.at("ldu_lowrank", rank) for matrix in scope.matrices]
    error = _median(item.diagnostics.frobenius_error for item in found)
    seconds = seconds_of(found)
    took = f", and takes {duration(median(seconds))} to compute" if seconds else ""
    return (
        f"At {scope.place} the near-best LDU, that of nearly the best matrix of this rank, has a median relative error "
        f"of {error}{took}."
    )


def _conditioning_scope(scope: Scope, matrices: list[MatrixAnalysis]) -> Scope:
    """Return all matrices at full rank, where each was measured there.

    Otherwise those that the headlines are about.
    """
    return Scope(matrices, None) if all(matrix.reaches_full_rank for matrix in matrices) else scope


def _conditioning_sentence(scope: Scope, strategies: Iterable[Pivoting]) -> str:
    medians = [
        f"{_median(item.diagnostics.condition_gram for item in scope.ldu(pivoting))} with {pivoting} pivoting"
        for pivoting in strategies
    ]
    return (
        f"At {scope.place} the metric of the diagonal (Gram matrix of the rank-one terms) has a median condition "
        f"number of {', '.join(medians)}; singular vectors have 1."
    )


def _time_sentence(scope: Scope, analysis: Analysis) -> str:
    def times_as_long(measurements: Iterable[Measurement]) -> str:
        pairs = zip(scope.matrices, measurements, strict=True)
        return _median(
            matrix.svd_seconds / item.seconds
            for matrix, item in pairs
            if matrix.svd_seconds is not None and item.seconds is not None
        )

    ratios = [
        f"{times_as_long(scope.ldu(pivoting))} times as long as LDU with {pivoting} pivoting"
        for pivoting in analysis.options.pivoting
    ]
    if analysis.options.has_pissa:
        quick = times_as_long(matrix.at("pissa", analysis.headline_rank) for matrix in scope.matrices)
        ratios.append(f"{quick} times as long as quick PiSSA")
    return f"At {scope.place} {svd_name(scope.matrices)} takes {', and '.join(ratios)} (medians)."


def _tie_sentence(scope: Scope, strategies: Iterable[Pivoting]) -> str:
    counts = [
        f"{sum(bool(item.diagnostics.near_ties_bfloat16) for item in scope.ldu(pivoting))} with {pivoting} pivoting"
        for pivoting in strategies
    ]
    return (
        f"Of {len(scope.matrices)} matrices at {scope.place}, rounding to bfloat16 could change a choice of "
        f"pivot (a competitor is within 2⁻⁸ of it) in {', '.join(counts)}."
    )
