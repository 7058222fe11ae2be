"""Do a run with a journal, if one is wanted."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from torch import nn

from lowrank_ldu.analysis.device import describe_device, usable_device
from lowrank_ldu.analysis.engine.journal import Journal, Origin, Result
from lowrank_ldu.analysis.engine.threads import describe_threads
from lowrank_ldu.analysis.source import is_in_memory
from lowrank_ldu.checkpoints.reader import UpdatesReader
from lowrank_ldu.environment import Environment, describe_environment
from lowrank_ldu.errors import JournalError, OptionError
from lowrank_ldu.validation import check_path, shown

if TYPE_CHECKING:
    import os
    from collections.abc import Callable, Collection, Iterator, Mapping, Sequence

    from lowrank_ldu.analysis.engine.executor import Engine
    from lowrank_ldu.analysis.engine.journal import ResultKind
    from lowrank_ldu.analysis.options import CompareOptions, SurveyOptions
    from lowrank_ldu.analysis.source import Source
    from lowrank_ldu.checkpoints import CheckpointReader

_Result = TypeVar("_Result", bound=Result)


def gather(
    kind: ResultKind[_Result],
    work: Callable[[Sequence[_Result]], Iterator[_Result]],
    names: Collection[str],
    *,
    options: SurveyOptions | CompareOptions,
    readers: Mapping[str, CheckpointReader],
    journal: str | os.PathLike[str] | None,
    resume: bool,
    start: float,
) -> tuple[list[_Result], float]:
    """Return the results of a journal and of the work that is left.

    Parameters
    ----------
    kind : ResultKind
    work : callable
        Called with the results that are known. Yields the others.
    names : collection of str
        The tensors that a journal may have results of.
    options : SurveyOptions or CompareOptions
    readers : mapping of str to CheckpointReader
        The open checkpoints, by the arguments that they are.
    journal : str or os.PathLike, optional
        Gets the results that are final, as they come. The file is left.
    resume : bool
        Go on with the journal that is there, if there is one.
    start : float
        When the run began, as of `time.perf_counter`.

    Returns
    -------
    results : list
        Those that are known come first.
    seconds : float
        What the runs before took.

    Raises
    ------
    JournalError
        As of `Journal`; or the journal has a result of another tensor.
    """
    if journal is None:
        return list(work(())), 0.0
    with Journal(Path(journal), kind, Origin.of(kind, options, readers), resume=resume) as kept:
        results = list(kept.results)
        unknown = [result.name for result in results if result.name not in names]
        if unknown:
            raise JournalError(
                f"{journal}: has a result of {unknown[0]!r}, which is none of the matrices to measure; remove the "
                "file to begin anew"
            )
        for result in work(kept.results):
            results.append(result)
            if kind.is_final(result):
                kept.append(result, time.perf_counter() - start)
        return results, kept.seconds


def check_keeping(*sources: Source, journal: object, resume: bool, engine: Engine | None = None) -> None:
    """Check where a run is kept and what does the work.

    Raises
    ------
    OptionError
        `resume` is given without a journal; a journal or an engine with a model in memory, where no file tells what
        results belong to; or an engine with the updates of an adapter, which are made here.
    TypeError
        The journal is no path, or the engine none.
    """
    if resume and journal is None:
        raise OptionError("resume is True without a journal; accepted: journal=PATH, that of the run to go on with")
    in_memory = next((source for source in sources if is_in_memory(source)), None)
    for name, value in (("journal", journal), ("engine", engine)):
        if value is not None and in_memory is not None:
            raise OptionError(
                f"{name} is given with a {'module' if isinstance(in_memory, nn.Module) else 'state dict'} in memory; "
                f"accepted: {name}=None, or {'the path of a checkpoint' if len(sources) == 1 else 'two paths'}"
            )
    if engine is not None and any(isinstance(source, UpdatesReader) for source in sources):
        raise OptionError(
            "engine is given with the updates of a LoLDU adapter, which its workers cannot make; accepted: "
            "engine=None, the local engine"
        )
    if journal is not None:
        check_path(journal, "journal")
    if engine is not None and not hasattr(engine, "executor"):
        raise TypeError(f"engine is {shown(engine)}; accepted: what lowrank_ldu.analysis.connect gives, or None")


def environment_of(options: SurveyOptions | CompareOptions, engine: Engine | None) -> Environment:
    """Describe the machine and what does the work on it.

    Raises
    ------
    OptionError
        The device is not there, or an engine is given beside it, which would not use it.
    """
    if engine is None:
        device = describe_device(usable_device(options.device))
        return describe_environment(describe_threads(options.threads, options.device), device)
    if options.device != "cpu":
        raise OptionError(
            f"device is {options.device!r} with an engine, whose workers would share it; accepted: device='cpu', or "
            "engine=None"
        )
    return describe_environment(engine.description)
