"""Analyze a whole checkpoint, with a journal if one is wanted."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from lowrank_ldu.analysis.engine.executor import list_reasons
from lowrank_ldu.analysis.engine.journal import Journal, Origin
from lowrank_ldu.analysis.engine.survey import TensorResult, survey
from lowrank_ldu.analysis.engine.threads import describe_threads
from lowrank_ldu.analysis.options import SurveyOptions
from lowrank_ldu.checkpoints.weights import open_weights
from lowrank_ldu.environment import Environment, describe_environment
from lowrank_ldu.errors import JournalError, NothingToAnalyzeError
from lowrank_ldu.validation import check_instance

if TYPE_CHECKING:
    import os
    from collections.abc import Callable
    from pathlib import Path

    from lowrank_ldu.analysis.engine.executor import Progress
    from lowrank_ldu.analysis.engine.survey import Engine
    from lowrank_ldu.analysis.measures.matrix import MatrixAnalysis


@dataclass(frozen=True)
class Analysis:
    """Results of a survey.

    Attributes
    ----------
    checkpoint : str
        The path that was opened.
    options : SurveyOptions
    environment : Environment
    seconds : float
        Wall-clock time of the survey, of all its parts if it was continued.
    tensors : list of TensorResult
        Every tensor in the order of the checkpoint, then what is not a plain tensor.
    """

    checkpoint: str
    options: SurveyOptions
    environment: Environment
    seconds: float
    tensors: list[TensorResult]

    @property
    def matrices(self) -> list[tuple[TensorResult, MatrixAnalysis]]:
        """Analyzed tensors, each with its analysis."""
        return [(tensor, tensor.analysis) for tensor in self.tensors if tensor.analysis is not None]

    @property
    def headline_rank(self) -> int:
        """Rank of the summaries.

        The largest one asked for that is below the full rank of some matrix.
        """
        return self.options.headline_rank(max(min(matrix.m, matrix.n) for _, matrix in self.matrices))

    @property
    def skipped(self) -> list[TensorResult]:
        """Tensors that were not analyzed."""
        return [tensor for tensor in self.tensors if tensor.analysis is None]


def analyze_checkpoint(
    path: str | os.PathLike[str],
    options: SurveyOptions,
    progress: Callable[[Progress], None] | None = None,
    *,
    journal: Path | None = None,
    resume: bool = False,
    engine: Engine | None = None,
) -> Analysis:
    """Open a checkpoint and analyze every matrix in it.

    Parameters
    ----------
    path : str or os.PathLike
        As for `lowrank_ldu.checkpoints.weights.open_weights`.
    options : SurveyOptions
    progress : callable, optional
        As for `lowrank_ldu.analysis.engine.survey.survey`.
    journal : pathlib.Path, optional
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
        `options` is no `SurveyOptions`.
    CheckpointError
        The checkpoint cannot be read.
    JournalError
        Another process has the journal, or there is one that is not to be continued, or cannot be.
    NothingToAnalyzeError
        No tensor of it could be analyzed.
    """
    check_instance(options, "options", SurveyOptions)
    start = time.perf_counter()
    environment = describe_environment(describe_threads(options.threads) if engine is None else engine.description)
    with open_weights(path) as reader:
        order = {name: place for place, name in enumerate([*(info.name for info in reader.tensors), *reader.ignored])}
        opened = str(reader.path)
        if journal is None:
            results, before = list(survey(reader, options, progress, engine=engine)), 0.0
        else:
            with Journal(journal, Origin.of(reader, options), resume=resume) as kept:
                results, before = list(kept.results), kept.seconds
                unknown = [result.name for result in results if result.name not in order]
                if unknown:
                    raise JournalError(
                        f"{journal}: has a result of {unknown[0]!r}, which the checkpoint lacks; remove the file to "
                        "begin anew"
                    )
                for result in survey(reader, options, progress, known=kept.results, engine=engine):
                    results.append(result)
                    if result.analysis is not None:
                        # Failures are not kept: they may be for want of memory, and are tried again.
                        kept.append(result, time.perf_counter() - start)
    results.sort(key=lambda result: order[result.name])
    analysis = Analysis(opened, options, environment, before + time.perf_counter() - start, results)
    if not analysis.matrices:
        raise NothingToAnalyzeError(f"{opened}: {_nothing_analyzed(results)}")
    return analysis


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
