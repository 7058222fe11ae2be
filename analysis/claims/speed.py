"""Test the claim that LDU costs less than an SVD."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lowrank_ldu.analysis.claims.verdict import (
    Claim,
    Finding,
    MatrixCase,
    NamedScope,
    full_rank_scope,
    medians,
    scopes_below_full_rank,
)
from lowrank_ldu.formatting import duration, figure

if TYPE_CHECKING:
    from collections.abc import Callable

    from lowrank_ldu.analysis.measures.matrix import MatrixAnalysis
    from lowrank_ldu.analysis.result import Analysis


def speed(analysis: Analysis) -> Claim:
    """Judge the seconds of LDU beside those of the SVD.

    The exact SVD and quick PiSSA; all seconds are those of the analysis, on random matrices of the same shapes.
    """

    def exact(matrix: MatrixAnalysis, _: int) -> float | None:
        return matrix.svd_seconds

    def quick(matrix: MatrixAnalysis, rank: int) -> float | None:
        return matrix.at("pissa", rank).seconds

    findings = []
    for place in scopes_below_full_rank(analysis):
        findings.append(_finding("LDU against exact SVD", place, "svd", exact))
        findings.append(_finding("LDU against quick PiSSA", place, "pissa", quick))
    findings.append(_finding("full LDU against full SVD", full_rank_scope(analysis), "svd", exact))
    return Claim(
        name="speed",
        statement="An LDU factorization is cheaper to compute than an SVD.",
        source="section III-E, and the comparison with SVD-based methods",
        rule="LDU with partial pivoting took less time than the other method on a matrix of the same shape",
        findings=findings,
    )


def _finding(
    test: str, place: NamedScope, other: str, seconds_of: Callable[[MatrixAnalysis, int], float | None]
) -> Finding:
    cases = []
    for name, matrix, item in place.ldu():
        rank = item.diagnostics.rank
        ours, theirs = item.seconds, seconds_of(matrix, rank)
        if ours is None or theirs is None:
            continue
        figures = {"ldu_seconds": ours, f"{other}_seconds": theirs, f"{other}_over_ldu": theirs / ours}
        cases.append(MatrixCase(name, rank, figures, ours < theirs))
    typical = medians(cases)
    measured = (
        f"LDU {duration(typical['ldu_seconds'])}, the other {duration(typical[f'{other}_seconds'])}: "
        f"{figure(typical[f'{other}_over_ldu'])} times as long"
        if cases
        else ""
    )
    return Finding(test, place.rank, measured, cases)
