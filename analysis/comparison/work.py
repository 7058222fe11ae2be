"""Load one pair of weights and compare them."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

import torch

from lowrank_ldu.analysis.comparison.matrix import compare_matrices
from lowrank_ldu.analysis.comparison.pairs import pair_up
from lowrank_ldu.analysis.device import CPU, compute_there, is_out_of_memory, pinned, usable_device
from lowrank_ldu.analysis.engine.executor import describe_error
from lowrank_ldu.analysis.engine.resources import limit_threads
from lowrank_ldu.analysis.engine.threads import Threads
from lowrank_ldu.analysis.engine.worker import SharedCheckpoint, kept_open
from lowrank_ldu.analysis.selection import as_matrix
from lowrank_ldu.checkpoints.reader import Update
from lowrank_ldu.errors import CheckpointError, RemoteError
from lowrank_ldu.validation import check_matrix

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from lowrank_ldu.analysis.comparison.pairs import Pair, PairResult
    from lowrank_ldu.analysis.engine.executor import Engine, Executor
    from lowrank_ldu.analysis.options import CompareOptions
    from lowrank_ldu.checkpoints import TensorInfo
    from lowrank_ldu.checkpoints.reader import UpdatesReader
    from lowrank_ldu.checkpoints.weights import WeightsReader

    # The base's tensor, and the other side's, or what makes an update from the base.
    Loaded = tuple[torch.Tensor, torch.Tensor | Callable[[], Update]]


def executor_of(
    pairs: Mapping[str, Pair],
    base: WeightsReader,
    tuned: WeightsReader,
    options: CompareOptions,
    engine: Engine | None = None,
) -> Executor[PairResult]:
    """Return what compares pairs: threads of this process, or the workers of an engine.

    Parameters
    ----------
    pairs : mapping of str to Pair
        By the names of the tensors that the executor is given.
    base, tuned : WeightsReader
        Open checkpoints.
    options : CompareOptions
    engine : Engine, optional
    """
    if engine is not None:
        task = partial(compare_remotely, SharedCheckpoint.of(base), SharedCheckpoint.of(tuned), options)
        return engine.executor(task, lambda info, reason: pairs[info.name].result("not compared", reason))
    device = usable_device(options.device)

    def give_up() -> None:
        base.give_up()
        tuned.give_up()

    return Threads(
        options.threads,
        lambda info: load_pair(pairs[info.name], base, tuned, device),
        lambda info, loaded: compare_pair(
            pairs[info.name], loaded, options, updates=tuned.holds_updates, device=device
        ),
        give_up=give_up,
        alone=device.type != "cpu",
    )


class _Paired(NamedTuple):
    base: WeightsReader
    tuned: WeightsReader
    pairs: dict[str, Pair]


def _paired(base: WeightsReader, tuned: WeightsReader) -> _Paired:
    return _Paired(base, tuned, {pair.name: pair for pair in pair_up(base, tuned)[0]})


def compare_remotely(
    base: SharedCheckpoint, tuned: SharedCheckpoint, options: CompareOptions, info: TensorInfo
) -> PairResult:
    """Read and compare a pair on a worker, with one thread.

    Parameters
    ----------
    base, tuned : SharedCheckpoint
    options : CompareOptions
    info : TensorInfo
        Of the base's tensor.

    Raises
    ------
    WorkerError
        As for `SharedCheckpoint.open`.
    """
    limit_threads(1)
    opened, reading = kept_open((base, tuned), _paired)
    pair = opened.pairs[info.name]
    with reading:
        loaded = [load_pair(pair, opened.base, opened.tuned)]
    return compare_pair(pair, loaded, options, updates=opened.tuned.holds_updates)


def load_pair(pair: Pair, base: WeightsReader, tuned: WeightsReader, device: torch.device = CPU) -> Loaded | str:
    """Load both sides of a pair for a device, or return why one cannot be read.

    Raises
    ------
    RemoteError
        A server does not give it, which says nothing of the tensor.
    """
    assert pair.base is not None and pair.tuned is not None  # noqa: S101, PT018  # others are left out
    try:
        weight = base.load(pair.base.name)
        if tuned.updates is not None:
            make = partial(_update_of, tuned.updates, pair, base, _whole(pair, base, weight))
            return pinned(weight, device), make
        other = tuned.load(pair.tuned.name)
        update = base.part_of_update(pair.name, other) if pair.is_part else other
        return pinned(weight, device), pinned(update, device)
    except RemoteError:
        raise
    except (CheckpointError, MemoryError) as error:
        return describe_error(error)


def _whole(pair: Pair, base: WeightsReader, weight: torch.Tensor) -> torch.Tensor:
    """Return the matrix (out, in) that an adapter was trained on."""
    assert pair.base is not None  # noqa: S101  # others are left out
    whole = base.whole_of(pair.base.name) if pair.is_part else None
    if whole is None:
        return as_matrix(weight, pair.base.order)
    return as_matrix(base.load_whole(pair.base.name), whole.order)


def _update_of(updates: UpdatesReader, pair: Pair, base: WeightsReader, matrix: torch.Tensor) -> Update:
    assert pair.tuned is not None  # noqa: S101  # others are left out
    update = updates.update_of(pair.tuned.name, matrix)
    return update._replace(matrix=base.part_of_update(pair.name, update.matrix)) if pair.is_part else update


def compare_pair(
    pair: Pair, loaded: list[Loaded | str], options: CompareOptions, *, updates: bool, device: torch.device = CPU
) -> PairResult:
    """Compare the one pair in a list on a device, or on the CPU where the device cannot hold it.

    It is taken out of the list, so that nothing else keeps it in memory.
    """
    sides = loaded.pop()
    if isinstance(sides, str):
        return pair.result("not compared", sides)
    try:
        other = Update(sides[1]) if isinstance(sides[1], torch.Tensor) else sides[1]()
    except ValueError as error:
        return pair.result("not compared", str(error))
    except MemoryError as error:  # of an update that is made from its base
        return pair.result("not compared", describe_error(error))
    tensors, deviation = [sides[0], other.matrix], other.deviation
    del sides, other
    compute = partial(_compare_tensors, pair, options=options, updates=updates)
    found = None
    if device.type != "cpu":
        try:
            found = compute_there(compute, tensors, device)
        except RuntimeError as error:
            return pair.result("not compared", describe_error(error))
    if found is None:
        device, found = CPU, compute(tensors)
    return found if found.comparison is None else replace(found, device=str(device), reason=deviation)


def _compare_tensors(pair: Pair, tensors: list[torch.Tensor], *, options: CompareOptions, updates: bool) -> PairResult:
    """Compare two tensors where they are; the list is emptied.

    Raises
    ------
    RuntimeError
        A device's memory ran out.
    """
    orders = [info.order if info else () for info in (pair.base, pair.tuned)]
    try:
        base, _ = check_matrix(as_matrix(tensors[0], orders[0]), "the base's tensor")
        tuned, _ = check_matrix(as_matrix(tensors[1], orders[1]), "the tuned tensor")
        tensors.clear()
        # In float64 if either is. Half precision has been widened to float32 before, so that no difference is lost.
        update, _ = check_matrix(tuned if updates else tuned - base, "the update")
    except ValueError as error:
        return pair.result("not compared", str(error))
    del tuned
    if not bool(update.any()):
        return pair.result("unchanged", "equal in every entry")
    try:
        return pair.result("compared", None, compare_matrices(base, update, options))
    except (RuntimeError, MemoryError) as error:  # torch raises RuntimeError for both LAPACK and memory
        if base.device.type != "cpu" and is_out_of_memory(error):
            raise
        return pair.result("not compared", describe_error(error))
