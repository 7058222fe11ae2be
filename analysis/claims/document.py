"""The claims, their figures and verdicts as JSON."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from lowrank_ldu.analysis.report.document import strict_json

if TYPE_CHECKING:
    from collections.abc import Sequence

    from lowrank_ldu.analysis.checkpoint import Analysis
    from lowrank_ldu.analysis.claims.verdict import Claim, Finding


def to_json(claims: Sequence[Claim], analysis: Analysis) -> str:
    """Return the claims as strict JSON, with what is needed to repeat the test."""
    content = {
        "paper": "arXiv 2410.13618",
        "checkpoint": analysis.checkpoint,
        "options": asdict(analysis.options),
        "environment": asdict(analysis.environment),
        "seconds": analysis.seconds,
        "skipped": [{"tensor": tensor.name, "reason": tensor.reason} for tensor in analysis.skipped],
        "claims": [
            {
                "claim": claim.name,
                "statement": claim.statement,
                "source": claim.source,
                "rule": claim.rule,
                "findings": [_finding(finding) for finding in claim.findings],
            }
            for claim in claims
        ],
    }
    return strict_json("lowrank-ldu claims 1", content)


def _finding(finding: Finding) -> dict[str, Any]:
    return {
        "test": finding.test,
        "rank": finding.rank,
        "verdict": finding.verdict,
        "measured": finding.measured,
        "medians": finding.medians,
        "counts": finding.counts,
        "matrices": [asdict(case) for case in finding.cases],
    }
