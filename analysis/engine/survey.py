"""Survey a checkpoint: one result for every tensor."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

from lowrank_ldu.analysis.device import CPU, compute_there, is_out_of_memory, pinned, usable_device
from lowrank_ldu.analysis.engine.executor import describe_error, work_through
from lowrank_ldu.analysis.engine.resources import bytes_per_entry, limit_threads, size_reason
from lowrank_ldu.analysis.engine.threads import Threads
from lowrank_ldu.analysis.engine.worker import SharedCheckpoint, kept_open
from lowrank_ldu.analysis.measures.matrix import MatrixAnalysis, analyze_matrix
from lowrank_ldu.analysis.selection import as_matrix, dtype_in_words, ignored_dtype, ignored_reason, skip_reason
from lowrank_ldu.environment import physical_memory
from lowrank_ldu.errors import CheckpointError, RemoteError
from lowrank_ldu.validation import check_matrix

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    import torch

    from lowrank_ldu.analysis.engine.executor import Engine, Executor, Progress
    from lowrank_ldu.analysis.options import SurveyOptions
    from lowrank_ldu.checkpoints import CheckpointReader, TensorInfo
    from lowrank_ldu.checkpoints.weights import WeightsReader


@dataclass(frozen=True)
class TensorResult:
    """Hold the result for one tensor.

    Either `analysis` or `reason` is None.

    Attributes
    ----------
    name : str
        As the checkpoint has it.
    shape : tuple of int, or None
        As stored; None for what is not a tensor.
    dtype : str
        As stored, and what it was dequantized to; for what is not a tensor, what it is,
        or nothing where `reason` says it.
    reason : str or None
        Why it was not analyzed.
    analysis : MatrixAnalysis or None
    seconds : float or None
        Of the whole analysis of this tensor, reading apart.
    device : str or None
        That computed it: that of the survey, or "cpu" where that has too little memory or not the dtype. None if it was
        not analyzed.
    """

    name: str
    shape: tuple[int, ...] | None
    dtype: str
    reason: str | None = None
    analysis: MatrixAnalysis | None = None
    seconds: float | None = None
    device: str | None = None

    def __repr__(self) -> str:
        shape = None if self.shape is None else "x".join(map(str, self.shape)) or "scalar"
        text = f"TensorResult {self.name!r}, {shape}, {self.dtype}: "
        if self.analysis is None:
            return f"{text}{self.reason}"
        return f"{text}{len(self.analysis.measurements)} measurements; {self.analysis.recommendation.reason}"


class Outcome(NamedTuple):
    """Hold what came of a tensor: its analysis, or why there is none.

    Seconds of computing, and the device that did it, come with it.
    """

    analysis: MatrixAnalysis | str
    seconds: float = 0.0
    device: str = "cpu"


def survey(
    reader: WeightsReader,
    options: SurveyOptions,
    progress: Callable[[Progress], None] | None = None,
    *,
    known: Iterable[TensorResult] = (),
    engine: Engine | None = None,
) -> Iterator[TensorResult]:
    """Analyze every matrix of a checkpoint.

    Parameters
    ----------
    reader : WeightsReader
        An open checkpoint.
    options : SurveyOptions
        With `threads` = 1 a single weight is in memory at any time; with more, at most that many, and no more than
        half of the machine's memory can hold. Another engine has its own threads. On another device than the CPU one
        is computed while the next is read.
    progress : callable, optional
        Called in the caller's thread when a tensor is begun or finished.
    known : iterable of TensorResult
        Results of an earlier survey of the same checkpoint with the same options: these tensors are not read again.
    engine : Engine, optional
        Threads of this process if there is none.

    Yields
    ------
    TensorResult
        One for each tensor and each thing that the reader ignored: first those that are skipped, then the others as
        they are finished, the largest first, without those that are known. A tensor that cannot be read or analyzed has
        the error as its reason.
    """
    for name, what in reader.ignored.items():
        yield TensorResult(name, None, ignored_dtype(what), ignored_reason(what))
    chosen: list[TensorInfo] = []
    finished = {result.name for result in known}
    for info in reader.tensors:
        reason = skip_reason(info, options)
        # Workers of a cluster may have more memory, or have had it when a result was found that is known.
        if reason is None and engine is None and info.name not in finished:
            reason = size_reason(info, bytes_per_entry(options), physical_memory())
        if reason is None:
            chosen.append(info)
        else:
            yield _result(info, reason)
    for info, outcome in work_through(
        (info for info in chosen if info.name not in finished),
        _threads(reader, options) if engine is None else _elsewhere(reader, options, engine),
        progress,
        finished=[info for info in chosen if info.name in finished],
    ):
        yield _result(info, None, outcome)


def _threads(reader: CheckpointReader, options: SurveyOptions) -> Executor[Outcome]:
    device = usable_device(options.device)

    def load_for_device(info: TensorInfo) -> torch.Tensor | str:
        tensor = load(reader, info)
        return tensor if isinstance(tensor, str) else pinned(tensor, device)

    return Threads(
        options.threads,
        load_for_device,
        lambda info, loaded: timed_analysis(info, loaded, options, device),
        bytes_per_entry(options),
        reader.give_up,
        alone=device.type != "cpu",
    )


def _elsewhere(reader: WeightsReader, options: SurveyOptions, engine: Engine) -> Executor[Outcome]:
    task = partial(analyze_remotely, SharedCheckpoint.of(reader), options)
    return engine.executor(task, lambda _, reason: Outcome(reason))


def analyze_remotely(checkpoint: SharedCheckpoint, options: SurveyOptions, info: TensorInfo) -> Outcome:
    """Read and analyze a tensor on a worker.

    With one thread: a worker has as many tasks at once as it has threads.

    Parameters
    ----------
    checkpoint : SharedCheckpoint
    options : SurveyOptions
    info : TensorInfo

    Returns
    -------
    Outcome
        As of `timed_analysis`.

    Raises
    ------
    WorkerError
        As for `SharedCheckpoint.open`.
    """
    limit_threads(1)
    reader, reading = kept_open((checkpoint,), _alone)
    with reading:
        loaded = [load(reader, info)]
    return timed_analysis(info, loaded, options)


def _alone(reader: WeightsReader) -> WeightsReader:
    return reader


def load(reader: CheckpointReader, info: TensorInfo) -> torch.Tensor | str:
    """Load a tensor, or return why it cannot be read.

    Raises
    ------
    RemoteError
        A server does not give it, which says nothing of the tensor: the survey is to go on later.
    """
    try:
        return reader.load(info.name)
    except RemoteError:
        raise
    except (CheckpointError, MemoryError) as error:
        return describe_error(error)


def timed_analysis(
    info: TensorInfo, loaded: list[torch.Tensor | str], options: SurveyOptions, device: torch.device = CPU
) -> Outcome:
    """Analyze the one tensor in a list on a device, and time it.

    Where there is no analysis the reason is returned.

    The tensor is taken out of the list, so that nothing else keeps it in memory.
    """
    start = time.perf_counter()
    where = device
    if device.type == "cpu":
        found = _analyze(loaded, info.order, options)
    else:
        found, where = _analyze_on_device(info, loaded, options, device)
    return Outcome(found, time.perf_counter() - start, str(where))


def _analyze_on_device(
    info: TensorInfo, loaded: list[torch.Tensor | str], options: SurveyOptions, device: torch.device
) -> tuple[MatrixAnalysis | str, torch.device]:
    """Analyze the tensor on a device, or on the CPU where the device cannot hold it."""
    (tensor,) = loaded
    if isinstance(tensor, str):
        return tensor, device
    try:
        found = compute_there(lambda there: _analyze(there, info.order, options), [tensor], device, options.dtype)
    except RuntimeError as error:
        return describe_error(error), device
    if found is not None:
        return found, device
    reason = size_reason(info, bytes_per_entry(replace(options, device="cpu")), physical_memory())
    if reason is not None:
        return f"error: {device} cannot hold it, and on the CPU, as {reason}", device
    del tensor
    return _analyze(loaded, info.order, options), CPU


def _analyze(
    loaded: list[torch.Tensor | str] | list[torch.Tensor], order: tuple[int, ...], options: SurveyOptions
) -> MatrixAnalysis | str:
    """Analyze the tensor where it is, or return why it cannot be analyzed.

    Raises
    ------
    RuntimeError
        A device's memory ran out.
    """
    tensor = loaded.pop()
    if isinstance(tensor, str):
        return tensor
    try:
        matrix, _ = check_matrix(as_matrix(tensor, order), "it")
    except ValueError as error:
        return str(error)
    del tensor
    try:
        return analyze_matrix(matrix, options)
    except ValueError as error:  # its numbers are out of the range of a method
        return str(error)
    except (RuntimeError, MemoryError) as error:  # torch raises RuntimeError for both LAPACK and memory
        if matrix.device.type != "cpu" and is_out_of_memory(error):
            raise
        return describe_error(error)


def _result(info: TensorInfo, reason: str | None, outcome: Outcome | None = None) -> TensorResult:
    described = TensorResult(info.name, info.shape, dtype_in_words(info), reason)
    if outcome is None:
        return described
    if isinstance(outcome.analysis, str):
        return replace(described, reason=outcome.analysis)
    return replace(described, analysis=outcome.analysis, seconds=outcome.seconds, device=outcome.device)
