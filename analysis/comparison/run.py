"""Compare two whole checkpoints."""

from __future__ import annotations

import time
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING

from lowrank_ldu.analysis.comparison.matrix import MatrixComparison, compare_matrices
from lowrank_ldu.analysis.comparison.pairs import Pair, PairResult, leave_out, pair_up
from lowrank_ldu.analysis.engine.executor import describe_error, list_reasons, work_through
from lowrank_ldu.analysis.engine.threads import Threads, describe_threads
from lowrank_ldu.analysis.options import CompareOptions
from lowrank_ldu.analysis.selection import as_matrix
from lowrank_ldu.checkpoints.weights import open_weights
from lowrank_ldu.environment import Environment, describe_environment
from lowrank_ldu.errors import CheckpointError, NothingToCompareError, OptionError, RemoteError
from lowrank_ldu.validation import check_matrix

if TYPE_CHECKING:
    import os
    from collections.abc import Callable

    import torch

    from lowrank_ldu.analysis.engine.executor import Progress
    from lowrank_ldu.checkpoints import CheckpointReader, TensorInfo


@dataclass(frozen=True)
class CheckpointComparison:
    """Results of a comparison.

    Attributes
    ----------
    base, tuned : str
        The paths that were opened.
    options : CompareOptions
    environment : Environment
    seconds : float
        Wall-clock time.
    tensors : list of PairResult
        Every name of either checkpoint, in the order of the base, then of the tuned one.
    """

    base: str
    tuned: str
    options: CompareOptions
    environment: Environment
    seconds: float
    tensors: list[PairResult]

    @property
    def matrices(self) -> list[tuple[PairResult, MatrixComparison]]:
        """Changed matrices, each with its comparison."""
        return [(tensor, tensor.comparison) for tensor in self.tensors if tensor.comparison is not None]

    @property
    def headline_rank(self) -> int:
        """Rank of the summaries.

        The largest one asked for that is below the full rank of some matrix.
        """
        return self.options.headline_rank(max(matrix.full_rank for _, matrix in self.matrices))

    @property
    def others(self) -> list[PairResult]:
        """Everything else, each with a reason."""
        return [tensor for tensor in self.tensors if tensor.comparison is None]

    @property
    def unchanged(self) -> list[PairResult]:
        """Matrices that are equal in every entry."""
        return [tensor for tensor in self.tensors if tensor.status == "unchanged"]


def compare_checkpoints(
    base: str | os.PathLike[str],
    tuned: str | os.PathLike[str],
    options: CompareOptions,
    progress: Callable[[Progress], None] | None = None,
) -> CheckpointComparison:
    """Measure the updates between two checkpoints.

    Every matrix that both hold is compared.

    Parameters
    ----------
    base, tuned : str or os.PathLike
        As for `lowrank_ldu.checkpoints.weights.open_weights`. Tensors are matched by name; the formats may differ.
    options : CompareOptions
        With `threads` = 1 a single pair of weights is in memory at any time; with more, at most that many.
    progress : callable, optional
        As for `lowrank_ldu.analysis.engine.executor.work_through`.

    Returns
    -------
    CheckpointComparison

    Raises
    ------
    OptionError
        The options are not those of a comparison.
    CheckpointError
        A checkpoint cannot be read.
    NothingToCompareError
        No matrix of them is changed.
    """
    if not isinstance(options, CompareOptions):  # a survey's have more, which would be ignored
        raise OptionError(f"options is a {type(options).__name__}; accepted: CompareOptions")
    start = time.perf_counter()
    with open_weights(base) as base_reader, open_weights(tuned) as tuned_reader:
        pairs = {pair.name: pair for pair in pair_up(base_reader, tuned_reader)}
        results = leave_out(list(pairs.values()), options)
        chosen = [pair.base for name, pair in pairs.items() if name not in results and pair.base is not None]
        for info, outcome in work_through(
            chosen,
            Threads(
                options.threads,
                lambda info: _load(info, base_reader, tuned_reader),
                lambda info, loaded: _compare(pairs[info.name], loaded, options),
                give_up=lambda: _give_up(base_reader, tuned_reader),
            ),
            progress,
        ):
            results[info.name] = outcome
        opened = str(base_reader.path), str(tuned_reader.path)
    ordered = [results[name] for name in pairs]
    environment = describe_environment(describe_threads(options.threads))
    comparison = CheckpointComparison(*opened, options, environment, time.perf_counter() - start, ordered)
    if not comparison.matrices:
        raise NothingToCompareError(f"{opened[0]} and {opened[1]}: {_nothing_compared(ordered)}")
    return comparison


def _load(info: TensorInfo, base: CheckpointReader, tuned: CheckpointReader) -> tuple[torch.Tensor, torch.Tensor] | str:
    try:
        return base.load(info.name), tuned.load(info.name)
    except RemoteError:  # which says nothing of the tensor
        raise
    except (CheckpointError, MemoryError) as error:
        return describe_error(error)


def _give_up(*readers: CheckpointReader) -> None:
    for reader in readers:
        reader.give_up()


def _compare(pair: Pair, loaded: list[tuple[torch.Tensor, torch.Tensor] | str], options: CompareOptions) -> PairResult:
    tensors = loaded.pop()
    if isinstance(tensors, str):
        return pair.result("not compared", tensors)
    orders = [info.order if info else () for info in (pair.base, pair.tuned)]
    try:
        base, _ = check_matrix(as_matrix(tensors[0], orders[0]), "the base's tensor")
        tuned, _ = check_matrix(as_matrix(tensors[1], orders[1]), "the tuned tensor")
        del tensors
        # In float64 if either is. Half precision has been widened to float32 before, so that no difference is lost.
        update, _ = check_matrix(tuned - base, "the update")
    except ValueError as error:
        return pair.result("not compared", str(error))
    del tuned
    if not bool(update.any()):
        return pair.result("unchanged", "equal in every entry")
    try:
        return pair.result("compared", None, compare_matrices(base, update, options))
    except (RuntimeError, MemoryError) as error:  # torch raises RuntimeError for both LAPACK and memory
        return pair.result("not compared", describe_error(error))


def _nothing_compared(results: list[PairResult]) -> str:
    if not results:
        return "they hold no tensors at all"
    counts = Counter(f"{result.status}: {result.reason}" for result in results)
    reasons = [f"{count} x {reason}" for reason, count in counts.most_common()]
    return f"no matrix is in both and changed; {list_reasons(reasons)}"
