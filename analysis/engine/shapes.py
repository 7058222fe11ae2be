"""Time methods once for each shape that was analyzed."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING

from lowrank_ldu.analysis.device import is_out_of_memory, usable_device
from lowrank_ldu.analysis.engine.executor import work_through
from lowrank_ldu.analysis.engine.resources import bytes_per_entry, size_reason
from lowrank_ldu.analysis.engine.threads import Threads
from lowrank_ldu.analysis.measures.timing import Problem, Times, time_methods
from lowrank_ldu.checkpoints import TensorInfo
from lowrank_ldu.environment import physical_memory

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from lowrank_ldu.analysis.engine.executor import Progress
    from lowrank_ldu.analysis.engine.survey import TensorResult
    from lowrank_ldu.analysis.measures.matrix import MethodAtRank
    from lowrank_ldu.analysis.options import SurveyOptions


def with_times(
    results: Sequence[TensorResult], options: SurveyOptions, progress: Callable[[Progress], None] | None = None
) -> list[TensorResult]:
    """Return results with the times of methods on matrices of their shapes.

    One after another, by one thread of this process and on the device of the survey, so that nothing else of it is in
    their way. Shapes that only workers with more memory could analyze have no times, nor have those that there is too
    little memory for now.

    Parameters
    ----------
    results : sequence of TensorResult
    options : SurveyOptions
    progress : callable, optional
        As of `survey`: shapes take the places of tensors.
    """
    methods: dict[Problem, set[MethodAtRank]] = {}
    for result in results:
        if result.analysis is not None:
            found = methods.setdefault(Problem.of(result.analysis), set())
            found.update(measurement.of for measurement in result.analysis.measurements)
    each, memory, device = bytes_per_entry(options), physical_memory(), usable_device(options.device)
    described = {_described(problem): problem for problem in methods}
    problems = {info: problem for info, problem in described.items() if size_reason(info, each, memory) is None}

    def compute(_: TensorInfo, loaded: list[Problem]) -> tuple[Problem, Times | None]:
        problem = loaded.pop()
        try:
            return problem, time_methods(problem, methods[problem], options.ranks, options.seed, device)
        except MemoryError:
            return problem, None
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
        return problem, None

    executor = Threads(1, lambda info: problems[info], compute, each)
    timed = dict(outcome for _, outcome in work_through(problems, executor, progress))
    times = {problem: seconds for problem, seconds in timed.items() if seconds is not None}
    return [
        replace(result, analysis=times[Problem.of(result.analysis)].put_into(result.analysis))
        if result.analysis is not None and Problem.of(result.analysis) in times
        else result
        for result in results
    ]


def _described(problem: Problem) -> TensorInfo:
    """Return a problem as what can be worked through."""
    how = "" if problem.svd_niter is None else ", randomized SVD"
    name = f"times at {problem.m} x {problem.n}, {problem.dtype}{how}"
    return TensorInfo(name, (problem.m, problem.n), problem.dtype, file="", nbytes=math.prod((problem.m, problem.n, 8)))
