"""Work through the matrices of a checkpoint: a few in memory at a time, the dearest first."""

from __future__ import annotations

from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

from lowrank_ldu.analysis.selection import matrix_shape
from lowrank_ldu.analysis.workers import plan, torch_threads

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from lowrank_ldu.analysis.readers import TensorInfo

_Loaded = TypeVar("_Loaded")
_Outcome = TypeVar("_Outcome")


@dataclass(frozen=True)
class Progress:
    """Where the work stands.

    Attributes
    ----------
    running : tuple of str
        Names of the tensors that are being analysed.
    finished, total : int
        Tensors to analyse.
    fraction : float
        Of the work, by an estimate of its cost; from 0 to 1.
    """

    running: tuple[str, ...]
    finished: int
    total: int
    fraction: float


def work_through(
    tensors: Iterable[TensorInfo],
    load: Callable[[TensorInfo], _Loaded],
    analyse: Callable[[TensorInfo, list[_Loaded]], _Outcome],
    threads: int,
    progress: Callable[[Progress], None] | None = None,
    *,
    finished: Iterable[TensorInfo] = (),
) -> Iterator[tuple[TensorInfo, _Outcome]]:
    """Load and analyse every one of `tensors`.

    Parameters
    ----------
    tensors : iterable of TensorInfo
        Matrices.
    load : callable
        Called in the caller's thread, one tensor after the other: readers are not shared between threads.
    analyse : callable
        Called in a worker with the tensor's description and a list that holds what was loaded. It takes it out of the
        list: a worker's arguments may outlive its result for a moment, and with them the weight.
    threads : int
        Cores to use, at least 1. At most that many loaded tensors exist at any time, and no more than half of the
        machine's memory can hold.
    progress : callable, optional
        Called in the caller's thread when a tensor is begun or finished.
    finished : iterable of TensorInfo
        Matrices that are part of the work and were done before, for the progress.

    Yields
    ------
    tuple of TensorInfo and what `analyse` returned
        As they are finished. What `load` or `analyse` raises ends the iteration.
    """
    # The largest first: a large one begun last would keep one core busy alone.
    waiting = sorted(tensors, key=_work, reverse=True)
    before = list(finished)
    count, done = len(before), sum(map(_work, before))
    total, whole = count + len(waiting), done + sum(map(_work, waiting))
    layout = plan(waiting, threads)
    running: dict[Future[_Outcome], TensorInfo] = {}

    def report() -> None:
        if progress is not None:
            progress(Progress(tuple(info.name for info in running.values()), count, total, done / whole))

    pool = ThreadPoolExecutor(layout.matrices)
    try:
        with torch_threads(layout.threads_each):
            while waiting or running:
                while waiting and len(running) < layout.matrices:
                    info = waiting.pop(0)
                    running[pool.submit(analyse, info, [load(info)])] = info
                    report()
                for future in wait(running, return_when=FIRST_COMPLETED).done:
                    info = running.pop(future)
                    count, done = count + 1, done + _work(info)
                    report()
                    yield info, future.result()
    finally:
        # Linear algebra cannot be interrupted; who stops the work should not have to wait for it.
        pool.shutdown(wait=False, cancel_futures=True)


def describe_error(error: Exception) -> str:
    """Return the reason that stands in a report for a tensor which failed."""
    return f"error: {str(error) or type(error).__name__}"


def _work(info: TensorInfo) -> int:
    m, n = matrix_shape(info.shape, info.order)
    return m * n * min(m, n)
