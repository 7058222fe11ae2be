"""Work through the matrices of a checkpoint, the costliest first."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Protocol, TypeVar

from lowrank_ldu.analysis.selection import matrix_shape
from lowrank_ldu.validation import shown

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from lowrank_ldu.checkpoints import TensorInfo

_Outcome = TypeVar("_Outcome")
_Outcome_co = TypeVar("_Outcome_co", covariant=True)


class Executor(Protocol[_Outcome_co]):
    """Work through tensors.

    By threads of this process, or by the workers of a cluster.
    """

    def at_once(self, tensors: Sequence[TensorInfo]) -> int:
        """Count the tensors that are worked on at the same time."""

    def run(self, tensors: Sequence[TensorInfo]) -> Iterator[tuple[TensorInfo, _Outcome_co]]:
        """Yield each tensor with its outcome.

        They are begun in their order, and yielded as they are finished.

        Closing the iterator, or an exception in it, gives up what is not finished.
        """


class Engine(Protocol):
    """Work through tensors elsewhere than in this process's threads."""

    @property
    def description(self) -> str:
        """Kind and size of the engine in words."""

    def executor(
        self, task: Callable[[TensorInfo], _Outcome], failed: Callable[[TensorInfo, str], _Outcome]
    ) -> Executor[_Outcome]:
        """Return an executor that does a task for each tensor.

        Parameters
        ----------
        task : callable
            It can be pickled, and opens what it reads itself.
        failed : callable
            From a tensor that cannot be worked on, and the reason, to its outcome.
        """


@dataclass(frozen=True)
class Progress:
    """Report how far a survey or comparison is.

    Attributes
    ----------
    running : tuple of str
        Names of the tensors that are being analyzed.
    finished, total : int
        Tensors to analyze.
    fraction : float
        Of the work, by an estimate of its cost; from 0 to 1.
    """

    running: tuple[str, ...]
    finished: int
    total: int
    fraction: float


def work_through(
    tensors: Iterable[TensorInfo],
    executor: Executor[_Outcome],
    progress: Callable[[Progress], None] | None = None,
    *,
    finished: Iterable[TensorInfo] = (),
) -> Iterator[tuple[TensorInfo, _Outcome]]:
    """Yield every tensor with its outcome, and report progress.

    Parameters
    ----------
    tensors : iterable of TensorInfo
        Matrices.
    executor : Executor
    progress : callable, optional
        Called in the caller's thread when a tensor is begun or finished.
    finished : iterable of TensorInfo
        Matrices that are part of the work and were done before, for the progress.

    Yields
    ------
    tuple of TensorInfo and its outcome
        As they are finished. What the executor raises ends the iteration.
    """
    if progress is not None and not callable(progress):
        raise TypeError(f"progress is {shown(progress)}; accepted: a callable, or None")
    waiting = _in_order(tensors)
    if not waiting:
        return
    before = list(finished)
    count, done = len(before), sum(map(_work, before))
    total, whole = count + len(waiting), done + sum(map(_work, waiting))
    at_once = executor.at_once(waiting)
    left = dict.fromkeys(waiting)

    def report() -> None:
        if progress is not None:
            # Tensors are started in this order, the next one as soon as one is finished.
            running = tuple(info.name for info in islice(left, at_once))
            progress(Progress(running, count, total, done / whole))

    report()
    for info, outcome in executor.run(waiting):
        del left[info]
        count, done = count + 1, done + _work(info)
        report()
        yield info, outcome


def describe_error(error: Exception) -> str:
    """Return the reason that a report gives for a failure."""
    return f"error: {str(error) or type(error).__name__}"


def list_reasons(reasons: Sequence[str], count: int = 3) -> str:
    """Join the first reasons and count the others.

    Examples
    --------
    >>> list_reasons(["a", "b", "c", "d", "e"])
    'a; b; c; and 2 other reasons'
    """
    more = f"; and {len(reasons) - count} other reasons" if len(reasons) > count else ""
    return f"{'; '.join(reasons[:count])}{more}"


def _in_order(tensors: Iterable[TensorInfo]) -> list[TensorInfo]:
    """Return tensors with the largest first.

    A large one that is begun last would keep one core busy alone.

    Parts of one stored tensor stay together, so that it is read once.
    """
    listed = list(tensors)
    largest: dict[tuple[str, str], int] = {}
    for info in listed:
        largest[_stored(info)] = max(_work(info), largest.get(_stored(info), 0))
    first = {stored: place for place, stored in enumerate(largest)}
    return sorted(listed, key=lambda info: (-largest[_stored(info)], first[_stored(info)]))


def _stored(info: TensorInfo) -> tuple[str, str]:
    return info.file, info.part_of or info.name


def _work(info: TensorInfo) -> int:
    m, n = matrix_shape(info.shape, info.order)
    return m * n * min(m, n)
