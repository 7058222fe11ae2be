"""Run pieces of a batch on threads that compute alone.

A product that all threads share has to wait for the slowest of them, several times. Where another process takes a core,
that is a time slice of the system's for each product. Here every thread takes the next piece of rows when it is done
with one, computes it by itself, and all meet once at the end.
"""

from __future__ import annotations

import os
import threading
from collections import deque
from concurrent.futures import ThreadPoolExecutor, wait
from typing import TYPE_CHECKING, TypeVar

import torch

from lowrank_ldu.kernels.torch_modes import is_dispatched

if TYPE_CHECKING:
    from collections.abc import Callable

T = TypeVar("T")

_starting = threading.Lock()
_pool: ThreadPoolExecutor | None = None


def thread_count(device: torch.device) -> int:
    """Return the number of threads that pieces are for.

    It is 1 where pieces have to stay in the caller's thread: on a GPU, while a dispatch mode of torch looks on, and
    where the thread, and so the ones that it starts, is bound to fewer cores than torch has threads.
    """
    if device.type != "cpu" or is_dispatched():
        return 1
    count = min(torch.get_num_threads(), os.cpu_count() or 1)
    if count > 1 and hasattr(os, "sched_getaffinity") and len(os.sched_getaffinity(0)) < count:
        return 1
    return count


def run_pieces(piece: Callable[[int, int, int], None], rows: int, step: int, threads: int) -> None:
    """Call `piece(start, stop, thread)` for all rows.

    Parameters
    ----------
    piece : callable
        Writes into tensors that exist already. `thread` is from 0 to threads - 1: no two pieces of one number run at
        the same time.
    rows : int
    step : int
        Rows of a piece.
    threads : int
        From `thread_count`. With 1 the pieces run in the caller's thread, which keeps its own threads of torch.
    """
    starts = deque(range(0, rows, step))

    def work(thread: int) -> None:
        try:
            while True:
                try:
                    start = starts.popleft()
                except IndexError:
                    return
                piece(start, min(start + step, rows), thread)
        except BaseException:
            starts.clear()
            raise

    threads = min(threads, len(starts))
    if threads <= 1:
        work(0)
        return
    inferring = torch.is_inference_mode_enabled()

    def apart(thread: int) -> None:
        # Modes belong to a thread.
        with torch.inference_mode(inferring), torch.no_grad():
            work(thread)

    futures = []
    try:
        for thread in range(threads):
            try:
                futures.append(_threads().submit(apart, thread))
            except RuntimeError:  # the interpreter ends, and starts no thread
                work(thread)
        wait(futures)
    finally:
        starts.clear()  # an interrupt ends the others, too
    for future in futures:
        future.result()


def run_alone(work: Callable[[], T]) -> T:
    """Return the result of `work` on a thread that computes alone."""
    try:
        future = _threads().submit(work)
    except RuntimeError:  # the interpreter ends
        return work()
    return future.result()


def _threads() -> ThreadPoolExecutor:
    global _pool  # noqa: PLW0603  # one for the process
    with _starting:
        if _pool is None:
            _pool = ThreadPoolExecutor(os.cpu_count() or 1, "lowrank_ldu", initializer=_compute_alone)
        return _pool


_counting = threading.Lock()


def _compute_alone() -> None:
    """Give the calling thread one thread of torch."""
    with _counting:
        before = torch.get_num_threads()  # torch sets up a thread at its first question, and not again
        torch.set_num_threads(1)
        # That is also what threads to come begin with. To put it back takes a thread, since it is that thread's, too.
        other = threading.Thread(target=torch.set_num_threads, args=(before,))
        other.start()
        other.join()


def _after_fork() -> None:
    global _pool, _starting, _counting
    _pool, _starting, _counting = None, threading.Lock(), threading.Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
