"""Work through matrices on the workers of a Dask cluster."""

from __future__ import annotations

import logging
import pickle
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Generic, TypeVar
from uuid import uuid4

from lowrank_ldu.analysis.engine.worker import forget_checkpoints
from lowrank_ldu.errors import ClusterError, WorkerError
from lowrank_ldu.validation import check_instance

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from distributed import Client, Future

    from lowrank_ldu.checkpoints import TensorInfo

_Outcome = TypeVar("_Outcome")

CONNECT_SECONDS = 5.0
WORKERS_SECONDS = 30.0


@contextmanager
def connect(scheduler: str) -> Iterator[Cluster]:
    """Connect to the scheduler of a cluster for a while.

    Parameters
    ----------
    scheduler : str
        Its address, ``tcp://HOST:8786``.

    Raises
    ------
    ClusterError
        Dask is not installed, there is no scheduler at that address, or it has no workers.
    """
    check_instance(scheduler, "scheduler", str)
    with _quiet("distributed.client"), _client(scheduler) as client:
        try:
            client.wait_for_workers(1, timeout=WORKERS_SECONDS)
        except TimeoutError as error:
            raise ClusterError(
                f"scheduler {scheduler!r} has no workers after {WORKERS_SECONDS:g} s; start some with "
                f"`dask worker {scheduler}`"
            ) from error
        yield Cluster(client, scheduler)


def _client(scheduler: str) -> Client:
    try:
        from distributed import Client  # noqa: PLC0415  # an extra's
    except ImportError as error:
        raise ClusterError("the dask engine needs distributed: pip install 'lowrank-ldu[cluster]'") from error
    try:
        return Client(scheduler, timeout=CONNECT_SECONDS, set_as_default=False)
    except (OSError, ValueError) as error:
        raise ClusterError(
            f"scheduler is {scheduler!r}, which cannot be reached ({_one_line(error)}); accepted: the address that "
            "`dask scheduler` prints, such as tcp://HOST:8786"
        ) from error


@contextmanager
def _quiet(logger: str) -> Iterator[None]:
    """Silence one of Dask's loggers.

    What it says about a lost connection is raised as an error.
    """
    log = logging.getLogger(logger)
    before = log.level
    log.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        log.setLevel(before)


class Cluster:
    """Do work on a Dask cluster.

    Parameters
    ----------
    client : distributed.Client
    scheduler : str
        Its address, for messages.
    """

    def __init__(self, client: Client, scheduler: str) -> None:
        self._client = client
        self._scheduler = scheduler

    @property
    def description(self) -> str:
        """Numbers of workers and threads at present."""
        threads = self._client.nthreads()
        return f"dask, workers: {len(threads)}, threads: {sum(threads.values())}"

    def executor(
        self, task: Callable[[TensorInfo], _Outcome], failed: Callable[[TensorInfo, str], _Outcome]
    ) -> Workers[_Outcome]:
        """Return the workers for one task."""
        return Workers(self._client, self._scheduler, task, failed)


class Workers(Generic[_Outcome]):
    """Do one task for many tensors on a cluster.

    Parameters
    ----------
    client : distributed.Client
    scheduler : str
        Its address, for messages.
    task : callable
        What is done for a tensor, of which no more than the description is sent. It can be pickled.
    failed : callable
        From a tensor whose workers died, and the reason, to its outcome.
    """

    def __init__(
        self,
        client: Client,
        scheduler: str,
        task: Callable[[TensorInfo], _Outcome],
        failed: Callable[[TensorInfo, str], _Outcome],
    ) -> None:
        self._client = client
        self._scheduler = scheduler
        self._task = task
        self._failed = failed

    def at_once(self, tensors: Sequence[TensorInfo]) -> int:
        """Count the tensors that are analyzed at the same time.

        The number changes when workers come or go.
        """
        threads: int = sum(self._client.nthreads().values())
        return min(len(tensors), threads)

    def run(self, tensors: Sequence[TensorInfo]) -> Iterator[tuple[TensorInfo, _Outcome]]:
        """Yield each tensor with its outcome.

        Tensors of workers that die are done again by others.

        Raises
        ------
        ClusterError
            The connection to the scheduler is lost, or a worker is not fit for the work.
        """
        from distributed import as_completed  # noqa: PLC0415  # an extra's

        self._check_workers()
        run = uuid4().hex
        pending: dict[Future[Any], TensorInfo] = {}
        try:
            # All tasks are submitted, so that workers which come later find work. Without the timeout tasks of the
            # same moment would be equal, and would not start in this order.
            for info in tensors:
                key = f"lowrank-ldu-{run}-{len(pending)}"
                pending[self._client.submit(self._task, info, key=key, pure=False, fifo_timeout="0 ms")] = info
            completed = as_completed(list(pending), loop=self._client.loop, with_results=True, raise_errors=False)
            for future, result in completed:
                outcome = self._outcome(pending[future], future.status, result)
                yield pending.pop(future), outcome
        finally:
            if self._client.status == "running":
                self._client.cancel(list(pending))
                self._client.run(forget_checkpoints, on_error="ignore")

    def _check_workers(self) -> None:
        """Refuse workers that cannot load the task.

        They would leave the cluster when they are sent it, without a word, and the run would wait for others.
        """
        # By a function of Python's own, which every worker has.
        answers = self._client.run(pickle.loads, pickle.dumps(self._task), on_error="return")
        for worker, answer in answers.items():
            if isinstance(answer, Exception):
                raise ClusterError(
                    f"scheduler {self._scheduler!r}: the worker {worker} cannot load what it has to do "
                    f"({_one_line(answer)}); accepted: workers that have this version of lowrank-ldu installed"
                ) from answer

    def _outcome(self, info: TensorInfo, status: str, result: Any) -> _Outcome:
        from distributed import KilledWorker  # noqa: PLC0415  # an extra's

        if status == "finished":
            outcome: _Outcome = result
            return outcome
        if status != "error":
            raise ClusterError(f"scheduler {self._scheduler!r}: the connection to it is lost")
        _, error, traceback = result
        if isinstance(error, KilledWorker):
            died = error.allowed_failures + 1
            reason = f"error: {died} workers died when they were at it, for want of memory perhaps"
            return self._failed(info, reason)
        if isinstance(error, WorkerError | ImportError):
            raise ClusterError(f"scheduler {self._scheduler!r}: a worker {_one_line(error)}") from error
        raise error.with_traceback(traceback)


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__
