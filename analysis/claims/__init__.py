"""The paper's numerical claims, tested on the weights of a checkpoint."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lowrank_ldu.analysis.claims.document import to_json
from lowrank_ldu.analysis.claims.initialization import initialization
from lowrank_ldu.analysis.claims.orthogonality import orthogonality
from lowrank_ldu.analysis.claims.page import render_page
from lowrank_ldu.analysis.claims.speed import speed
from lowrank_ldu.analysis.claims.storage import storage
from lowrank_ldu.analysis.claims.structure import structure
from lowrank_ldu.analysis.claims.verdict import Case, Claim, Finding, verdict

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from lowrank_ldu.analysis.checkpoint import Analysis

__all__ = ["Case", "Claim", "Finding", "examine_claims", "verdict", "write_claims"]


def examine_claims(analysis: Analysis, stored_numbers: Callable[[int], int]) -> list[Claim]:
    """Test the claims of arXiv 2410.13618 on an analyzed checkpoint.

    Parameters
    ----------
    analysis : Analysis
        With partial pivoting, which is the paper's; other strategies are taken as remedies.
    stored_numbers : callable
        Of the rank: how many numbers an adapter's file holds for a layer, `lowrank_ldu.adapters.stored_numbers`.

    Returns
    -------
    list of Claim
        Verdicts follow from the figures in `analysis` alone.

    Raises
    ------
    ValueError
        The analysis has no partial pivoting.

    Examples
    --------
    >>> import tempfile
    >>> from pathlib import Path
    >>> import numpy as np
    >>> from lowrank_ldu.analysis.options import SurveyOptions
    >>> from lowrank_ldu.analysis.checkpoint import analyze_checkpoint
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     np.savez(Path(folder, "model.npz"), weight=np.diag([4.0, 3.0, 2.0, 1.0]))
    ...     analysis = analyze_checkpoint(Path(folder, "model.npz"), SurveyOptions(ranks=(2,)))
    >>> claims = examine_claims(analysis, lambda rank: 2 * rank + 66)
    >>> [(finding.place, finding.verdict) for finding in claims[1].findings]
    [('rank 2', 'holds'), ('full rank', 'holds')]
    """
    if "partial" not in analysis.options.pivoting:
        raise ValueError(
            f"pivoting is {', '.join(analysis.options.pivoting)}; accepted: an analysis with partial pivoting, the "
            "paper's"
        )
    return [
        speed(analysis),
        orthogonality(analysis),
        structure(analysis),
        initialization(analysis),
        storage(analysis, stored_numbers),
    ]


def write_claims(claims: Sequence[Claim], analysis: Analysis, folder: Path) -> None:
    """Write `claims.json`, which holds every figure, and `claims.html`, a page that needs nothing else.

    Parameters
    ----------
    claims : sequence of Claim
    analysis : Analysis
        What they were tested on.
    folder : pathlib.Path
        Exists.

    Raises
    ------
    OSError
        A file cannot be written.
    """
    (folder / "claims.json").write_text(to_json(claims, analysis), encoding="utf-8")
    (folder / "claims.html").write_text(render_page(claims, analysis), encoding="utf-8")
