"""One whole analysis of a checkpoint: the results with what is needed to read them."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from lowrank_ldu.analysis.environment import Environment, describe_environment
from lowrank_ldu.analysis.readers import open_checkpoint
from lowrank_ldu.analysis.survey import TensorResult, survey

if TYPE_CHECKING:
    import os
    from collections.abc import Callable

    from lowrank_ldu.analysis.matrix import MatrixAnalysis
    from lowrank_ldu.analysis.options import SurveyOptions
    from lowrank_ldu.analysis.pool import Progress


class NothingToAnalyseError(ValueError):
    """A checkpoint has no tensor that could be analysed; the message counts the reasons."""


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
        Wall-clock time of the survey.
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
        """The tensors that were analysed, each with its analysis."""
        return [(tensor, tensor.analysis) for tensor in self.tensors if tensor.analysis is not None]

    @property
    def headline_rank(self) -> int:
        """The rank that summaries are about: the largest one asked for that some matrix does not reach in full."""
        largest = max(min(matrix.m, matrix.n) for _, matrix in self.matrices)
        return max((rank for rank in self.options.ranks if rank < largest), default=self.options.ranks[-1])

    @property
    def skipped(self) -> list[TensorResult]:
        """The tensors that were not."""
        return [tensor for tensor in self.tensors if tensor.analysis is None]


def analyse_checkpoint(
    path: str | os.PathLike[str], options: SurveyOptions, progress: Callable[[Progress], None] | None = None
) -> Analysis:
    """Open a checkpoint and analyse every matrix in it.

    Parameters
    ----------
    path : str or os.PathLike
        As for `lowrank_ldu.analysis.readers.open_checkpoint`.
    options : SurveyOptions
    progress : callable, optional
        As for `lowrank_ldu.analysis.survey.survey`.

    Returns
    -------
    Analysis

    Raises
    ------
    CheckpointError
        The checkpoint cannot be read.
    NothingToAnalyseError
        No tensor of it could be analysed.
    """
    start = time.perf_counter()
    with open_checkpoint(path) as reader:
        order = {name: place for place, name in enumerate([*(info.name for info in reader.tensors), *reader.ignored])}
        results = sorted(survey(reader, options, progress), key=lambda result: order[result.name])
        opened = str(reader.path)
    analysis = Analysis(opened, options, describe_environment(), time.perf_counter() - start, results)
    if not analysis.matrices:
        raise NothingToAnalyseError(f"{opened}: {_why_nothing(results)}")
    return analysis


def _why_nothing(results: list[TensorResult]) -> str:
    if not results:
        return "holds no tensors at all"
    examples: dict[str, list[str]] = {}
    for result in results:
        examples.setdefault(result.reason or "", []).append(result.name)
    reasons = [
        f"{names[0]!r}{f' and {len(names) - 1} more' if len(names) > 1 else ''}: {reason}"
        for reason, names in examples.items()
    ]
    more = f"; and {len(reasons) - 3} other reasons" if len(reasons) > 3 else ""
    return f"none of its {len(results)} tensors can be analysed; {'; '.join(reasons[:3])}{more}"
