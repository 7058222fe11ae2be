"""Test the paper's numerical claims on an analyzed checkpoint."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from lowrank_ldu.analysis.checkpoint import analyze
from lowrank_ldu.analysis.claims.examined import Claims
from lowrank_ldu.analysis.claims.initialization import initialization
from lowrank_ldu.analysis.claims.orthogonality import orthogonality
from lowrank_ldu.analysis.claims.speed import speed
from lowrank_ldu.analysis.claims.storage import storage
from lowrank_ldu.analysis.claims.structure import structure
from lowrank_ldu.analysis.options import SurveyOptions
from lowrank_ldu.analysis.result import Analysis
from lowrank_ldu.errors import OptionError
from lowrank_ldu.validation import given_fields, shows_fields

if TYPE_CHECKING:
    import os
    from collections.abc import Callable

    from lowrank_ldu.analysis.engine.executor import Engine, Progress
    from lowrank_ldu.analysis.source import Source

__all__ = ["examine_claims"]


@shows_fields(SurveyOptions)
def examine_claims(
    source: Analysis | Source,
    *,
    options: SurveyOptions | None = None,
    progress: Callable[[Progress], None] | None = None,
    journal: str | os.PathLike[str] | None = None,
    resume: bool = False,
    engine: Engine | None = None,
    **fields: Any,
) -> Claims:
    """Test the claims of arXiv 2410.13618 on a checkpoint's weights.

    Parameters
    ----------
    source : Analysis, str, os.PathLike, torch.nn.Module or mapping of str to torch.Tensor
        An analysis with partial pivoting, which is the paper's; other strategies are taken as remedies. Anything else
        is analyzed first, by `lowrank_ldu.analysis.analyze`.
    options : SurveyOptions, optional
        How to analyze it, in place of keywords; not with an analysis, which has its own.
    progress : callable, optional
        As for `analyze`.
    journal : str or os.PathLike, optional
        As for `analyze`, like `resume` and `engine`; not with an analysis, which is done.
    **fields
        Those of `SurveyOptions`, with its defaults, but for `mode`, which is "exact".

    Returns
    -------
    Claims
        A sequence of `Claim`. Verdicts follow from the figures of the analysis alone.

    Raises
    ------
    TypeError
        Options, a journal or an engine are given with an analysis; or as for `analyze`.
    OptionError
        The analysis is in another mode than "exact", or without times; or as for `analyze`.
    CheckpointError, JournalError, NothingToAnalyzeError
        As for `analyze`.
    ValueError
        The analysis has no partial pivoting.

    Examples
    --------
    >>> import torch
    >>> claims = examine_claims({"weight": torch.diag(torch.tensor([4.0, 3.0, 2.0, 1.0]))}, ranks=2)
    >>> [(finding.place, finding.verdict) for finding in claims[1].findings]
    [('rank 2', 'holds'), ('full rank', 'holds')]
    """
    if isinstance(source, Analysis):
        asked = {"options": options, "journal": journal, "resume": resume or None, "engine": engine, **fields}
        given = [name for name, value in asked.items() if name in fields or value is not None]
        if given:
            raise TypeError(
                f"{', '.join(given)} is given with an Analysis; accepted: with a source that is to be analyzed"
            )
        _check(source.options)
        analysis = source
    else:
        chosen = given_fields(SurveyOptions, options, {"mode": "exact", **fields} if options is None else fields)
        _check(chosen)  # before the hours of work
        analysis = analyze(source, options=chosen, progress=progress, journal=journal, resume=resume, engine=engine)
    examined = (speed, orthogonality, structure, initialization, storage)
    return Claims(analysis, tuple(examine(analysis) for examine in examined))


def _check(options: SurveyOptions) -> None:
    """Refuse options of analyses that lack what is tested."""
    if options.mode != "exact" or not options.has_times:
        raise OptionError(
            f"mode is {options.mode!r} and times is {options.times}; accepted: an analysis with mode='exact', whose "
            "factors reach the full rank, and with times"
        )
    if "partial" not in options.pivoting:
        raise ValueError(
            f"pivoting is {', '.join(options.pivoting)}; accepted: an analysis with partial pivoting, the paper's"
        )
