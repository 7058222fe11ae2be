"""Test the claim that training starts from the pre-trained model."""

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
from lowrank_ldu.initialization import INITIALIZATIONS

if TYPE_CHECKING:
    from collections.abc import Callable

    from lowrank_ldu.analysis.measures.initialization_change import InitializationChange
    from lowrank_ldu.analysis.result import Analysis

# About the effect of rounding every entry to float32 and summing some hundred of them.
LARGEST_CHANGE = 1e-6


def initialization(analysis: Analysis) -> Claim:
    """Judge the change of the weight before the first step.

    Each initialization of the diagonal is tested in either form of the layer.
    """
    findings = []
    for place in (*scopes_below_full_rank(analysis), full_rank_scope(analysis)):
        findings.append(_finding("Algorithm 1 as written", place, lambda start: start.algorithm_1))
        findings.append(_finding("preserving form", place, lambda start: start.preserving))
    return Claim(
        name="initialization",
        statement=(
            "The residual preserves all of the pre-trained weight, and any of the heuristic initializations of the "
            "diagonal makes training stable."
        ),
        source="sections III-C and IV-E, Algorithm 1, Table V",
        rule=(
            f"none of the {len(INITIALIZATIONS)} initializations changes the layer's weight before the first step, "
            f"‖W' - W‖_F / ‖W‖_F, by more than {LARGEST_CHANGE:g}; sigma is 1"
        ),
        findings=findings,
    )


def _finding(test: str, place: NamedScope, change: Callable[[InitializationChange], float]) -> Finding:
    cases = []
    for name, _, item in place.ldu():
        figures: dict[str, float] = {init: change(start) for init, start in item.starts.items()}
        cases.append(MatrixCase(name, item.diagnostics.rank, figures, max(figures.values()) <= LARGEST_CHANGE))
    measured = "change: " + ", ".join(f"{init} {figure(value)}" for init, value in medians(cases).items())
    return Finding(test, place.rank, measured if cases else "", cases)
