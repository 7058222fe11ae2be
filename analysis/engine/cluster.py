"""Run a survey on the workers of a Dask cluster."""

from __future__ import annotations

import logging
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import lowrank_ldu
from lowrank_ldu.analysis.engine.resources import limit_threads
from lowrank_ldu.analysis.engine.survey import Outcome, load, timed_analysis
from lowrank_ldu.checkpoints.file_states import file_states
from lowrank_ldu.checkpoints.remote.path import RemotePath
from lowrank_ldu.checkpoints.weights import open_weights
from lowrank_ldu.errors import CheckpointError, ClusterError, WorkerError
from lowrank_ldu.validation import check_instance

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from distributed import Client, Future

    from lowrank_ldu.analysis.options import SurveyOptions
    from lowrank_ldu.checkpoints import CheckpointReader, TensorInfo

# Threads of a worker that start together must not open a checkpoint twice.
_opening = Lock()


@dataclass(frozen=True)
class Source:
    """Identify a checkpoint for the workers.

    They find its tensors by it, and see whether these are the right ones.

    Attributes
    ----------
    version : str
        Of this package.
    path : str
        Of the checkpoint, absolute; or its URL.
    files : tuple of (str, str, str)
        Path, size, and time of change or mark of the content of each file that holds tensors.
    """

    version: str
    path: str
    files: tuple[tuple[str, ...], ...]

    @classmethod
    def of(cls, reader: CheckpointReader) -> Source:
        """Return the source of an open checkpoint.

        Raises
        ------
        ClusterError
            Its URL holds secrets, which the scheduler and the logs of workers would see.
        """
        path = reader.path
        if isinstance(path, RemotePath) and path.address.has_secrets:
            raise ClusterError(
                f"{path}: was opened with a query or with user information, which workers must not be sent; accepted: "
                "the local engine, or a URL without them, and credentials in the environment of each worker"
            )
        files = ((file, *map(str, state)) for file, state in file_states(reader).items())
        return cls(lowrank_ldu.__version__, str(path.absolute() if isinstance(path, Path) else path), tuple(files))


def analyze_remotely(source: Source, options: SurveyOptions, info: TensorInfo) -> Outcome:
    """Read and analyze a tensor on a worker.

    With one thread: a worker has as many tasks at once as it has threads.

    Parameters
    ----------
    source : Source
    options : SurveyOptions
    info : TensorInfo

    Returns
    -------
    Outcome
        As of `timed_analysis`.

    Raises
    ------
    WorkerError
        This machine does not have the same checkpoint at the same path, or another version of this package.
    """
    limit_threads(1)
    with _opening:
        reader, reading = _opened(source)
    with reading:
        loaded = [load(reader, info)]
    return timed_analysis(info, loaded, options)


# Readers are kept from task to task. One that is pushed out is closed when no thread uses it any more.
@lru_cache(maxsize=2)
def _opened(source: Source) -> tuple[CheckpointReader, Lock]:
    if source.version != lowrank_ldu.__version__:
        raise WorkerError(f"has lowrank-ldu {lowrank_ldu.__version__}; accepted: {source.version}, as here")
    try:
        reader = open_weights(source.path)
    except CheckpointError as error:
        raise WorkerError(f"{error}; the checkpoint has to be at the same path on every worker") from error
    if Source.of(reader) != source:
        raise WorkerError(
            f"{source.path}: its files have another size or time of change than those that were opened here"
        )
    return reader, Lock()


def forget_checkpoints() -> None:
    """Close the checkpoints that are open in this process."""
    with _opening:
        _opened.cache_clear()


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
    """Run surveys on a Dask cluster.

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

    def executor(self, reader: CheckpointReader, options: SurveyOptions) -> Workers:
        """Return the workers for one checkpoint.

        They open it themselves.
        """
        return Workers(self._client, self._scheduler, partial(analyze_remotely, Source.of(reader), options))


class Workers:
    """Run the tasks of one survey on a cluster.

    Parameters
    ----------
    client : distributed.Client
    scheduler : str
        Its address, for messages.
    task : callable
        What is done for a tensor, of which no more than the description is sent.
    """

    def __init__(self, client: Client, scheduler: str, task: Callable[[TensorInfo], Outcome]) -> None:
        self._client = client
        self._scheduler = scheduler
        self._task = task

    def at_once(self, tensors: Sequence[TensorInfo]) -> int:
        """Count the tensors that are analyzed at the same time.

        The number changes when workers come or go.
        """
        threads: int = sum(self._client.nthreads().values())
        return min(len(tensors), threads)

    def run(self, tensors: Sequence[TensorInfo]) -> Iterator[tuple[TensorInfo, Outcome]]:
        """Yield each tensor with its outcome.

        Tensors of workers that die are done again by others.

        Raises
        ------
        ClusterError
            The connection to the scheduler is lost, or a worker is not fit for the work.
        """
        from distributed import as_completed  # noqa: PLC0415  # an extra's

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
                outcome = self._outcome(future.status, result)
                yield pending.pop(future), outcome
        finally:
            if self._client.status == "running":
                self._client.cancel(list(pending))
                self._client.run(forget_checkpoints, on_error="ignore")

    def _outcome(self, status: str, result: Any) -> Outcome:
        from distributed import KilledWorker  # noqa: PLC0415  # an extra's

        if status == "finished":
            outcome: Outcome = result
            return outcome
        if status != "error":
            raise ClusterError(f"scheduler {self._scheduler!r}: the connection to it is lost")
        _, error, traceback = result
        if isinstance(error, KilledWorker):
            died = error.allowed_failures + 1
            return Outcome(f"error: {died} workers died when they were at it, for want of memory perhaps")
        if isinstance(error, WorkerError | ImportError):
            raise ClusterError(f"scheduler {self._scheduler!r}: a worker {_one_line(error)}") from error
        raise error.with_traceback(traceback)


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__
