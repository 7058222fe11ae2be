"""Claim: the decomposition costs little, less than what other methods start from."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lowrank_ldu.analysis.claims.places import full_rank, places_below_full_rank
from lowrank_ldu.analysis.claims.verdict import Case, Claim, Finding, medians
from lowrank_ldu.analysis.report.formatting import duration, figure

if TYPE_CHECKING:
    from collections.abc import Iterable

    from lowrank_ldu.analysis.run import Analysis


def speed(analysis: Analysis) -> Claim:
    """Compare the seconds of LDU with those of the exact SVD and of quick PiSSA.

    Parameters
    ----------
    analysis : Analysis
        With partial pivoting; its seconds are all that counts.
    """
    findings = []
    for place in places_below_full_rank(analysis):
        against_svd = [(name, item.seconds, matrix.svd_seconds) for name, matrix, item in place.ldu()]
        findings.append(_finding("LDU against exact SVD", "svd", place.rank, against_svd))
        against_pissa = [
            (name, item.seconds, matrix.at("pissa", item.diagnostics.rank).seconds)
            for name, matrix, item in place.ldu()
        ]
        findings.append(_finding("LDU against quick PiSSA", "pissa", place.rank, against_pissa))
    whole = full_rank(analysis)
    ranks = [item.diagnostics.rank for _, _, item in whole.ldu()]
    full = [(name, item.seconds, matrix.svd_seconds) for name, matrix, item in whole.ldu()]
    findings.append(_finding("full LDU against full SVD", "svd", None, full, ranks))
    return Claim(
        name="speed",
        statement="An LDU factorisation is cheaper to compute than an SVD.",
        source="section III-E, and the comparison with SVD-based methods",
        rule="LDU with partial pivoting took less time than the other method on the same matrix",
        findings=findings,
    )


def _finding(
    test: str,
    other: str,
    rank: int | None,
    times: Iterable[tuple[str, float, float]],
    ranks: list[int] | None = None,
) -> Finding:
    cases = [
        Case(
            name,
            ranks[place] if ranks else rank or 0,
            {"ldu_seconds": ours, f"{other}_seconds": theirs, f"{other}_over_ldu": theirs / ours},
            ours < theirs,
        )
        for place, (name, ours, theirs) in enumerate(times)
    ]
    typical = medians(cases)
    measured = (
        f"LDU {duration(typical['ldu_seconds'])}, the other {duration(typical[f'{other}_seconds'])}: "
        f"{figure(typical[f'{other}_over_ldu'])} times as long"
        if cases
        else ""
    )
    return Finding(test, rank, measured, cases)
