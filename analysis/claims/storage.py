"""Test the claim that a layer stores r + 1 numbers."""

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
from lowrank_ldu.diagnostics import stored_numbers
from lowrank_ldu.formatting import figure

if TYPE_CHECKING:
    from collections.abc import Callable

    from lowrank_ldu.analysis.measures.matrix import Measurement
    from lowrank_ldu.analysis.result import Analysis

# "Considerably less" is taken as at most half. Packed triangles save at most half of the factors, so the verdict on
# memory does not depend on packing.
LARGEST_SHARE = 0.5


def storage(analysis: Analysis) -> Claim:
    """Judge the numbers of a layer beside those of LoRA.

    They are counted as trained, as written to the adapter's file, and as kept in memory by training.
    """
    findings = []
    for place in (*scopes_below_full_rank(analysis), full_rank_scope(analysis)):
        findings += [
            _finding("trained", place, lambda item: item.diagnostics.rank + 1),
            _finding("adapter file", place, lambda item: stored_numbers(item.diagnostics.rank)),
            _finding("memory beside the weight", place, _in_memory),
        ]
    return Claim(
        name="storage",
        statement=(
            "LoLDU needs O(r + 1) storage for a layer, far less than LoRA's r (m + n), in training and in inference."
        ),
        source="section III-E",
        rule=f"the numbers are at most {LARGEST_SHARE:g} times the r (m + n) of a LoRA pair of the same rank",
        findings=findings,
    )


def _in_memory(item: Measurement) -> int:
    """Count the numbers of L, z, U and sigma."""
    figures = item.diagnostics
    # Both counts of bytes are in the factors' dtype, so it cancels in their quotient.
    return figures.factor_bytes * figures.m * figures.n // figures.dense_bytes + 1


def _finding(test: str, place: NamedScope, count: Callable[[Measurement], int]) -> Finding:
    cases = []
    for name, matrix, item in place.ldu():
        rank, numbers = item.diagnostics.rank, count(item)
        pair = rank * (matrix.m + matrix.n)
        cases.append(
            MatrixCase(
                name,
                rank,
                {"numbers": numbers, "lora_numbers": pair, "share_of_lora": numbers / pair},
                numbers <= LARGEST_SHARE * pair,
            )
        )
    typical = medians(cases)
    measured = (
        f"{round(typical['numbers']):,} numbers, LoRA {round(typical['lora_numbers']):,}: "
        f"{figure(100 * typical['share_of_lora'])} %"
        if cases
        else ""
    )
    return Finding(test, place.rank, measured, cases)
