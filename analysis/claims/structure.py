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
    from collections.abc import Iterable, Iterator

    from lowrank_ldu.analysis.result import Analysis
    from lowrank_ldu.decomposition import Pivoting
    from lowrank_ldu.diagnostics import Diagnostics

# Share of the energy of the best terms. Less can hardly be called the essential part.
LEAST_SHARE = 0.5


def structure(analysis: Analysis) -> Claim:
    """Judge the error of the leading terms beside the SVD's.

    The paper's partial pivoting comes first. Complete pivoting, where the analysis has it, the least-squares refit of
    the diagonal, the best core in its place, and the near-best LDU are remedies.
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
        findings=[finding for place in scopes_below_full_rank(analysis) for finding in _at(place, strategies)],
    )


def _at(place: NamedScope, strategies: Iterable[Pivoting]) -> Iterator[Finding]:
    for pivoting in strategies:
        found = [(name, item.diagnostics) for name, _, item in place.ldu(pivoting)]
        test = f"{pivoting} pivoting"
        yield _finding(test, place, [(name, item, item.frobenius_error) for name, item in found])
        yield _finding(
            f"{test}, refitted diagonal", place, [(name, item, item.refit_frobenius_error) for name, item in found]
        )
        yield _finding(
            f"{test}, best core",
            place,
            [(name, item, item.core_frobenius_error) for name, item in found if item.core_frobenius_error is not None],
        )
    near_best = [
        (name, matrix.at("ldu_lowrank", item.diagnostics.rank).diagnostics) for name, matrix, item in place.ldu()
    ]
    yield _finding("near-best LDU", place, [(name, item, item.frobenius_error) for name, item in near_best])


def _finding(test: str, place: NamedScope, errors: list[tuple[str, Diagnostics, float]]) -> Finding:
    cases = []
    for name, figures, error in errors:
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
    return Finding(test, place.rank, measured, cases, {"worse_than_zero": worse})
