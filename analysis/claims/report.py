"""Write the claims: figures and verdicts as JSON, and a page."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, Any

from lowrank_ldu.analysis.document import CLAIMS_FORMAT, json_document, results_as_tensors
from lowrank_ldu.analysis.report.templating import page_template
from lowrank_ldu.analysis.report.where import timed_on
from lowrank_ldu.analysis.result import Analysis
from lowrank_ldu.formatting import duration, figure
from lowrank_ldu.validation import check_instance

if TYPE_CHECKING:
    import os
    from collections.abc import Sequence

    from lowrank_ldu.analysis.claims.verdict import Claim, Finding

PAPER = "arXiv 2410.13618"


def write_claims(claims: Sequence[Claim], analysis: Analysis, folder: str | os.PathLike[str]) -> None:
    """Write the claims into a folder.

    `claims.json` holds everything, also the analysis, and `Claims.load` reads it; `claims.html` is a page that needs
    nothing else.

    Parameters
    ----------
    claims : sequence of Claim
    analysis : Analysis
        What they were tested on.
    folder : str or os.PathLike
        Exists. Files of these names in it are replaced.

    Raises
    ------
    TypeError
        `analysis` is no `Analysis`.
    OSError
        A file cannot be written.
    """
    check_instance(analysis, "analysis", Analysis)
    folder = Path(folder)
    (folder / "claims.json").write_text(claims_json(claims, analysis), encoding="utf-8")
    (folder / "claims.html").write_text(render_claims(claims, analysis), encoding="utf-8")


def claims_json(claims: Sequence[Claim], analysis: Analysis) -> str:
    """Return the claims as strict JSON.

    It has what they were tested on too, as the document of an analysis has it.
    """
    content = {"paper": PAPER, "claims": [claim_record(claim) for claim in claims], **results_as_tensors(analysis)}
    return json_document(CLAIMS_FORMAT, content)


def claim_record(claim: Claim) -> dict[str, Any]:
    """Return a claim as a dict, with the verdict and the medians of each finding."""
    return {
        "claim": claim.name,
        "statement": claim.statement,
        "source": claim.source,
        "rule": claim.rule,
        "findings": [_finding(finding) for finding in claim.findings],
    }


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


def render_claims(claims: Sequence[Claim], analysis: Analysis) -> str:
    """Return the claims as an HTML page.

    A test is a row, and below it stands a table of its matrices.

    Everything from the checkpoint is escaped.
    """
    template = page_template(
        "claims.html.j2", measure=_measure, mark=_mark, heading=lambda name: name.replace("_", " ")
    )
    return template.render(
        analysis=analysis,
        title=PurePath(analysis.checkpoint).name,
        claims=claims,
        timed_on=timed_on(analysis),
    )


def _measure(value: float, name: str) -> str:
    return duration(value) if name.endswith("seconds") else figure(value)


def _mark(verdict: str) -> str:
    """Return the class that a verdict is shown with."""
    return {"holds": "yes", "does not hold": "no", "not tested": "open"}.get(verdict, "part")
