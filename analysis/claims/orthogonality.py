"""Test the claim that the triangular factors are orthogonal."""

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
from lowrank_ldu.formatting import figure

if TYPE_CHECKING:
    from lowrank_ldu.analysis.result import Analysis

# Orthonormal vectors computed in float32 have a defect of about 1e-6.
LARGEST_DEFECT = 1e-3


def orthogonality(analysis: Analysis) -> Claim:
    """Judge the angles between columns of L and rows of U."""
    return Claim(
        name="orthogonality",
        statement="The lower and upper triangular factors are orthogonal.",
        source="sections I, III-A and III-C",
        rule=(
            "the columns of L and the rows of U, scaled to unit length, have a defect ‖CᵀC - I‖_F / √r of at most "
            f"{LARGEST_DEFECT:g} each"
        ),
        findings=[_finding(place) for place in (*scopes_below_full_rank(analysis), full_rank_scope(analysis))],
    )


def _finding(place: NamedScope) -> Finding:
    cases = []
    for name, _, item in place.ldu():
        figures = item.diagnostics
        defects = (figures.orthogonality_left, figures.orthogonality_right)
        cases.append(
            MatrixCase(
                name,
                figures.rank,
                {
                    "left_defect": defects[0],
                    "right_defect": defects[1],
                    "left_condition": figures.condition_left,
                    "right_condition": figures.condition_right,
                },
                max(defects) <= LARGEST_DEFECT,
            )
        )
    typical = {name: figure(value) for name, value in medians(cases).items()}
    measured = (
        f"defect {typical['left_defect']} of L, {typical['right_defect']} of U; "
        f"cond(L) {typical['left_condition']}, cond(U) {typical['right_condition']}"
        if cases
        else ""
    )
    return Finding("L and U", place.rank, measured, cases)
