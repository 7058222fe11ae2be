"""Work through matrices with threads of this process."""

from __future__ import annotations

import warnings
from concurrent.futures import CancelledError
from contextlib import contextmanager, nullcontext
from threading import Lock
from typing import TYPE_CHECKING, Generic, TypeVar

from joblib import Parallel, delayed

from lowrank_ldu.analysis.engine.resources import BYTES_PER_ENTRY, Layout, pinned_threads, plan

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from lowrank_ldu.checkpoints import TensorInfo

_Loaded = TypeVar("_Loaded")
_Outcome = TypeVar("_Outcome")


def describe_threads(threads: int, device: str = "cpu") -> str:
    """Describe the threads of this process in words, with the device that they serve."""
    return f"local, threads: {threads}" if device == "cpu" else f"local, one matrix at a time on {device}"


class Threads(Generic[_Loaded, _Outcome]):
    """Load tensors one by one and analyze them in parallel.

    Linear algebra lets go of the interpreter's lock, so that processes would be no faster, and each of them would
    have to import torch and open the checkpoint.

    Parameters
    ----------
    threads : int
        Cores to use, at least 1. At most that many loaded tensors exist at any time, and no more than half of the
        machine's memory can hold.
    load : callable
        Called by one thread at a time: readers are not shared between threads. Not called any more once the iterator
        of `run` is closed.
    analyze : callable
        Called with the tensor's description and a list that holds what was loaded. It takes it out of the list: a
        worker's arguments may outlive its result for a moment, and with them the weight.
    each : int
        Bytes for each entry of a matrix that its analysis takes at its peak.
    give_up : callable, optional
        Ends the loading that a thread is at, where it may take long. Called if the iterator of `run` ends early.
    alone : bool
        Whether `analyze` is called by one thread at a time, too, as for a device. The next tensor is loaded meanwhile.
    """

    def __init__(
        self,
        threads: int,
        load: Callable[[TensorInfo], _Loaded],
        analyze: Callable[[TensorInfo, list[_Loaded]], _Outcome],
        each: int = BYTES_PER_ENTRY,
        give_up: Callable[[], None] = lambda: None,
        *,
        alone: bool = False,
    ) -> None:
        self._threads = threads
        self._load = load
        self._analyze = analyze
        self._each = each
        self._give_up = give_up
        self._alone = alone

    def at_once(self, tensors: Sequence[TensorInfo]) -> int:
        """Count the tensors that are worked on at the same time."""
        return self._plan(tensors).matrices

    def _plan(self, tensors: Sequence[TensorInfo]) -> Layout:
        return plan(tensors, self._threads, each=self._each, alone=self._alone)

    def run(self, tensors: Sequence[TensorInfo]) -> Iterator[tuple[TensorInfo, _Outcome]]:
        """Yield each tensor with the value of `analyze`.

        An exception of a callable ends the iteration.
        """
        reading, computing, stopped, whole = Lock(), Lock(), False, False

        def work(info: TensorInfo) -> tuple[TensorInfo, _Outcome]:
            with reading:
                if stopped:
                    raise CancelledError
                loaded = [self._load(info)]
            with computing if self._alone else nullcontext():
                if self._alone and stopped:
                    raise CancelledError
                return info, self._analyze(info, loaded)

        layout = self._plan(tensors)
        with pinned_threads(layout.threads_each):
            outcomes = Parallel(
                # joblib runs a single job in the caller's thread, where Ctrl-C would wait for the end of LAPACK's
                # work. The number of dispatched tensors limits the number of loaded ones.
                n_jobs=max(2, layout.matrices),
                pre_dispatch=layout.matrices,
                batch_size=1,
                backend="threading",
                return_as="generator_unordered",
            )(delayed(work)(info) for info in tensors)
            try:
                for outcome in outcomes:  # noqa: UP028  # `yield from` would close them, with the warning
                    yield outcome
                whole = True
            finally:
                stopped = True
                if not whole:
                    self._give_up()
                # Linear algebra cannot be interrupted, and stopping does not wait for it. The caller may close the
                # reader next, however: no thread may be reading then.
                with _without_warnings():
                    outcomes.close()
                with reading:
                    pass


@contextmanager
def _without_warnings() -> Iterator[None]:
    """Silence joblib's warning about cancelled tasks.

    They are cancelled on purpose here.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
