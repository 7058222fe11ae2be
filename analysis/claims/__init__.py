"""Test the paper's numerical claims on an analyzed checkpoint."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lowrank_ldu.analysis.claims.initialization import initialization
from lowrank_ldu.analysis.claims.orthogonality import orthogonality
from lowrank_ldu.analysis.claims.speed import speed
from lowrank_ldu.analysis.claims.storage import storage
from lowrank_ldu.analysis.claims.structure import structure
from lowrank_ldu.analysis.result import Analysis
from lowrank_ldu.validation import check_instance

if TYPE_CHECKING:
    from lowrank_ldu.analysis.claims.verdict import Claim

__all__ = ["examine_claims"]


def examine_claims(analysis: Analysis) -> list[Claim]:
    """Test the claims of arXiv 2410.13618 on an analyzed checkpoint.

    Parameters
    ----------
    analysis : Analysis
        With partial pivoting, which is the paper's; other strategies are taken as remedies.

    Returns
    -------
    list of Claim
        Verdicts follow from the figures in `analysis` alone.

    Raises
    ------
    TypeError
        `analysis` is no `Analysis`.
    ValueError
        The analysis has no partial pivoting.

    Examples
    --------
    >>> import tempfile
    >>> from pathlib import Path
    >>> import numpy as np
    >>> from lowrank_ldu.analysis import SurveyOptions, analyze_checkpoint
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     np.savez(Path(folder, "model.npz"), weight=np.diag([4.0, 3.0, 2.0, 1.0]))
    ...     analysis = analyze_checkpoint(Path(folder, "model.npz"), SurveyOptions(ranks=(2,)))
    >>> claims = examine_claims(analysis)
    >>> [(finding.place, finding.verdict) for finding in claims[1].findings]
    [('rank 2', 'holds'), ('full rank', 'holds')]
    """
    check_instance(analysis, "analysis", Analysis)
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
        storage(analysis),
    ]
