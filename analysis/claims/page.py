"""The claims as one HTML file that loads nothing."""

from __future__ import annotations

from pathlib import PurePath
from typing import TYPE_CHECKING

from lowrank_ldu.analysis.report.templating import page_template
from lowrank_ldu.formatting import duration, figure

if TYPE_CHECKING:
    from collections.abc import Sequence

    from lowrank_ldu.analysis.checkpoint import Analysis
    from lowrank_ldu.analysis.claims.verdict import Claim


def render_page(claims: Sequence[Claim], analysis: Analysis) -> str:
    """Return the claims as HTML, a row a test and below it a table of its matrices.

    Everything from the checkpoint is escaped.
    """
    template = page_template(
        "claims.html.j2", measure=_measure, mark=_mark, heading=lambda name: name.replace("_", " ")
    )
    return template.render(analysis=analysis, title=PurePath(analysis.checkpoint).name, claims=claims)


def _measure(value: float, name: str) -> str:
    return duration(value) if name.endswith("seconds") else figure(value)


def _mark(verdict: str) -> str:
    """Return the class that a verdict is shown with."""
    return {"holds": "yes", "does not hold": "no", "not tested": "open"}.get(verdict, "part")
