"""Analyze a whole checkpoint or model, with a journal if one is wanted."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from lowrank_ldu.analysis.engine.executor import list_reasons
from lowrank_ldu.analysis.engine.journal import ResultKind
from lowrank_ldu.analysis.engine.keeping import check_keeping, environment_of, gather
from lowrank_ldu.analysis.engine.shapes import with_times
from lowrank_ldu.analysis.engine.survey import TensorResult, survey
from lowrank_ldu.analysis.options import SurveyOptions
from lowrank_ldu.analysis.result import Analysis
from lowrank_ldu.analysis.selection import matrix_shape, skip_reason
from lowrank_ldu.analysis.source import open_source
from lowrank_ldu.errors import NothingToAnalyzeError
from lowrank_ldu.validation import check_flag, check_instance, given_fields, shows_fields

if TYPE_CHECKING:
    import os
    from collections.abc import Callable

    from lowrank_ldu.analysis.engine.executor import Engine, Progress
    from lowrank_ldu.analysis.source import Source
    from lowrank_ldu.checkpoints import TensorInfo

ANALYSIS_RESULTS = ResultKind("an analysis", TensorResult, "analysis", lambda result: result.analysis is not None)


@shows_fields(SurveyOptions)
def analyze(
    source: Source,
    *,
    options: SurveyOptions | None = None,
    progress: Callable[[Progress], None] | None = None,
    journal: str | os.PathLike[str] | None = None,
    resume: bool = False,
    engine: Engine | None = None,
    **fields: Any,
) -> Analysis:
    """Analyze every matrix of a checkpoint, module or state dict.

    Nothing is written but the journal, if one is asked for: `Analysis.save` writes the report.

    Parameters
    ----------
    source : str, os.PathLike, torch.nn.Module or mapping of str to torch.Tensor
        A checkpoint by its path, or ``hf://OWNER/NAME`` on the hub, or another URL; or a model in memory, by its module
        or its state dict. Tensors in memory may be on any device, quantized or combined, as in files; they are never
        changed, and tied ones are analyzed once.
    options : SurveyOptions, optional
        How to analyze it, in place of keywords.
    progress : callable, optional
        As for `analyze_checkpoint`, which this calls, like `journal`, `resume` and `engine`.
    **fields
        Those of `SurveyOptions`, with its defaults: `ranks`, `pivoting`, `mode`, `targets`, `select`, `exclude`,
        `dtype`, `seed`, `threads`, `times`, `device`.

    Returns
    -------
    Analysis

    Raises
    ------
    TypeError
        `source` is none of these, `options` is no `SurveyOptions` or is given beside fields, or a field is unknown.
    OptionError
        An option is out of its range, or a journal or an engine is given with a model in memory.
    CheckpointError, JournalError, NothingToAnalyzeError
        As for `analyze_checkpoint`.

    Examples
    --------
    >>> import torch
    >>> weights = {"a.weight": torch.diag(torch.tensor([4.0, 3.0, 2.0])), "a.bias": torch.zeros(3)}
    >>> analysis = analyze(weights, ranks=2, pivoting="complete", threads=1)
    >>> figures = analysis.figures
    >>> figures.loc[figures["rank"] == 2, ["method", "frobenius_error"]].round(3).to_dict("list")["method"]
    ['ldu', 'ldu_lowrank', 'svd']
    """
    chosen = given_fields(SurveyOptions, options, fields)
    return analyze_checkpoint(source, chosen, progress, journal=journal, resume=resume, engine=engine)


def analyze_checkpoint(
    path: Source,
    options: SurveyOptions,
    progress: Callable[[Progress], None] | None = None,
    *,
    journal: str | os.PathLike[str] | None = None,
    resume: bool = False,
    engine: Engine | None = None,
) -> Analysis:
    """Open a checkpoint and analyze every matrix in it.

    Parameters
    ----------
    path : str, os.PathLike, torch.nn.Module or mapping of str to torch.Tensor
        As for `analyze`.
    options : SurveyOptions
    progress : callable, optional
        As for `lowrank_ldu.analysis.engine.survey.survey`.
    journal : str or os.PathLike, optional
        Where to keep results as they come. The file is left for the caller, who removes it when the analysis is saved.
    resume : bool
        Go on where the journal that is there ends, if there is one.
    engine : Engine, optional
        What does the work: threads of this process, or a cluster of `lowrank_ldu.analysis.engine.cluster.connect`. The
        results do not depend on it, and a journal can be continued with another one.

    Returns
    -------
    Analysis

    Raises
    ------
    TypeError
        `options` is no `SurveyOptions`, or `path` is nothing that can be opened.
    OptionError
        A journal or an engine is given with a model in memory: no file tells them what their results belong to. Or
        `resume` is given without a journal, the device of the options is not there, or it is given with an engine.
    CheckpointError
        The checkpoint cannot be read.
    JournalError
        Another process has the journal, or there is one that is not to be continued, or cannot be.
    NothingToAnalyzeError
        No tensor of it could be analyzed.
    """
    check_instance(options, "options", SurveyOptions)
    check_keeping(path, journal=journal, resume=check_flag(resume, "resume"), engine=engine)
    environment = environment_of(options, engine)
    start = time.perf_counter()
    with open_source(path) as reader:
        order = {name: place for place, name in enumerate([*(info.name for info in reader.tensors), *reader.ignored])}
        opened = str(reader.path)
        updates = {info.name: _factor_numbers(info) for info in reader.tensors} if reader.holds_updates else None
        results, before = gather(
            ANALYSIS_RESULTS,
            lambda known: survey(reader, options, progress, known=known, engine=engine),
            {info.name for info in reader.tensors if skip_reason(info, options) is None},
            options=options,
            readers={"source": reader},
            journal=journal,
            resume=resume,
            start=start,
        )
    if options.has_times:
        results = with_times(results, options, progress)
    results.sort(key=lambda result: order[result.name])
    stored = None if updates is None else sum(updates[each.name] for each in results if each.analysis is not None)
    analysis = Analysis(opened, options, environment, before + time.perf_counter() - start, results, stored)
    if not analysis.matrices:
        raise NothingToAnalyzeError(f"{opened}: {_nothing_analyzed(results)}")
    return analysis


def _factor_numbers(info: TensorInfo) -> int:
    return info.rank * sum(matrix_shape(info.shape, info.order)) if info.rank else 0


def _nothing_analyzed(results: list[TensorResult]) -> str:
    if not results:
        return "holds no tensors at all"
    examples: dict[str, list[str]] = {}
    for result in results:
        examples.setdefault(result.reason or "", []).append(result.name)
    reasons = [
        f"{names[0]!r}{f' and {len(names) - 1} more' if len(names) > 1 else ''}: {reason}"
        for reason, names in examples.items()
    ]
    return f"none of its {len(results)} tensors can be analyzed; {list_reasons(reasons)}"
