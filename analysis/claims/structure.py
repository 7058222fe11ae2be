"""Test the claim that leading terms hold the essential structure."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lowrank_ldu.analysis.claims.verdict import (
    PAPER,
    Claim,
    Finding,
    MatrixCase,
    NamedScope,
    medians,
    scopes_below_full_rank,
)
from lowrank_ldu.formatting import figure

if TYPE_CHECKING:
    from lowrank_ldu.analysis.checkpoint import Analysis
    from lowrank_ldu.decomposition import Pivoting

# Share of the energy of the best terms. Less can hardly be called the essential part.
LEAST_SHARE = 0.5


def structure(analysis: Analysis) -> Claim:
    """Judge the error of the leading terms beside the SVD's.

    The paper's partial pivoting comes first; complete pivoting, where the analysis has it, and the least-squares refit
    of the diagonal are remedies.
    """
    strategies = (PAPER, *(each for each in analysis.options.pivoting if each != PAPER))
    return Claim(
        name="structure",
        statement="The leading r terms of the LDU capture the essential structure of the weight.",
        source="section III-B",
        rule=(
            "the leading terms hold at least half of the energy that the best r terms hold, 1 - e² ≥ (1 - e_svd²) / 2, "
            "with e = ‖W - W_r‖_F / ‖W‖_F; the zero matrix has e = 1 and fails"
        ),
        findings=[
            _finding(place, pivoting, refit=refit)
            for place in scopes_below_full_rank(analysis)
            for pivoting in strategies
            for refit in (False, True)
        ],
    )


def _finding(place: NamedScope, pivoting: Pivoting, *, refit: bool) -> Finding:
    cases = []
    for name, _, item in place.ldu(pivoting):
        figures = item.diagnostics
        error = figures.refit_frobenius_error if refit else figures.frobenius_error
        best = figures.svd_frobenius_error
        cases.append(
            MatrixCase(
                name,
                figures.rank,
                {"error": error, "svd_error": best, "energy": 1 - error**2, "svd_energy": 1 - best**2},
                1 - error**2 >= LEAST_SHARE * (1 - best**2),
            )
        )
    worse = sum(case.figures["error"] > 1 for case in cases)
    typical = medians(cases)
    measured = (
        f"error {figure(typical['error'])}, SVD {figure(typical['svd_error'])}; "
        f"worse than zero in {worse} of {len(cases)}"
        if cases
        else ""
    )
    test = f"{pivoting} pivoting{', refitted diagonal' if refit else ''}"
    return Finding(test, place.rank, measured, cases, {"worse_than_zero": worse})
