"""Compare two whole checkpoints."""

from __future__ import annotations

import time
from collections import Counter
from typing import TYPE_CHECKING, Any

from lowrank_ldu.analysis.comparison.pairs import PairResult, leave_out, pair_up
from lowrank_ldu.analysis.comparison.result import CheckpointComparison
from lowrank_ldu.analysis.comparison.work import executor_of
from lowrank_ldu.analysis.engine.executor import list_reasons, work_through
from lowrank_ldu.analysis.engine.journal import ResultKind
from lowrank_ldu.analysis.engine.keeping import check_keeping, environment_of, gather
from lowrank_ldu.analysis.options import CompareOptions
from lowrank_ldu.analysis.source import open_source
from lowrank_ldu.checkpoints.adapter_folder import is_adapter_folder
from lowrank_ldu.errors import CheckpointError, JournalError, NothingToCompareError, OptionError
from lowrank_ldu.validation import check_flag, given_fields, shown, shows_fields

if TYPE_CHECKING:
    import os
    from collections.abc import Callable, Iterator, Sequence

    from lowrank_ldu.analysis.engine.executor import Engine, Progress
    from lowrank_ldu.analysis.source import Source
    from lowrank_ldu.checkpoints.weights import WeightsReader

COMPARISON_RESULTS = ResultKind(
    "a comparison", PairResult, "comparison", lambda result: result.status in {"compared", "unchanged"}
)
_ACCEPTED = "; accepted: "


@shows_fields(CompareOptions)
def compare(
    base: Source,
    tuned: Source,
    *,
    options: CompareOptions | None = None,
    progress: Callable[[Progress], None] | None = None,
    journal: str | os.PathLike[str] | None = None,
    resume: bool = False,
    engine: Engine | None = None,
    **fields: Any,
) -> CheckpointComparison:
    """Compare a fine-tuned checkpoint, module or state dict with its base.

    Nothing is written but the journal, if one is asked for: `CheckpointComparison.save` writes the report.

    Parameters
    ----------
    base, tuned : str, os.PathLike, torch.nn.Module or mapping of str to torch.Tensor
        As for `lowrank_ldu.analysis.analyze`; one may be on disk and the other in memory.
    options : CompareOptions, optional
        How to compare them, in place of keywords.
    progress : callable, optional
        As for `compare_checkpoints`, which this calls, like `journal`, `resume` and `engine`.
    **fields
        Those of `CompareOptions`, with its defaults: `ranks`, `pivoting`, `select`, `exclude`, `seed`, `threads`,
        `device`.

    Returns
    -------
    CheckpointComparison

    Raises
    ------
    TypeError
        `base` or `tuned` is none of these, `options` is no `CompareOptions` or is given beside fields, or a field is
        unknown.
    OptionError, CheckpointError, JournalError, NothingToCompareError
        As for `compare_checkpoints`.

    Examples
    --------
    >>> import torch
    >>> base = {"w": torch.diag(torch.tensor([4.0, 3.0, 2.0]))}
    >>> comparison = compare(base, {"w": 2 * base["w"]}, ranks=2, pivoting="complete", threads=1)
    >>> comparison.figures.query("method == 'ldu'")[["rank", "explained"]].round(3).values.tolist()
    [[2.0, 0.862], [3.0, 1.0]]
    """
    chosen = given_fields(CompareOptions, options, fields)
    return compare_checkpoints(base, tuned, chosen, progress, journal=journal, resume=resume, engine=engine)


def compare_checkpoints(
    base: Source,
    tuned: Source,
    options: CompareOptions,
    progress: Callable[[Progress], None] | None = None,
    *,
    journal: str | os.PathLike[str] | None = None,
    resume: bool = False,
    engine: Engine | None = None,
) -> CheckpointComparison:
    """Measure the updates between two checkpoints.

    Every matrix that both hold is compared.

    Parameters
    ----------
    base, tuned : str, os.PathLike, torch.nn.Module or mapping of str to torch.Tensor
        As for `lowrank_ldu.analysis.analyze`. Tensors are matched by name, but for a prefix that all of one side have;
        the formats may differ. `tuned` may be the folder of a LoRA adapter, or what `lowrank_ldu.adapters.open_updates`
        gives for one of LoLDU, which is closed in the end: its updates are measured.
    options : CompareOptions
        With `threads` = 1 a single pair of weights is in memory at any time; with more, at most that many.
    progress : callable, optional
        As for `lowrank_ldu.analysis.engine.executor.work_through`.
    journal : str or os.PathLike, optional
        Where to keep results as they come. The file is left for the caller, who removes it when the report is saved.
    resume : bool
        Go on where the journal that is there ends, if there is one.
    engine : Engine, optional
        As for `analyze_checkpoint`. Both checkpoints have to be at the same path on every worker.

    Returns
    -------
    CheckpointComparison

    Raises
    ------
    OptionError
        The options are not those of a comparison; a journal or an engine is given with a model in memory, an engine
        with the updates of a LoLDU adapter, or `resume` without a journal; the device is not there, or is given with
        an engine.
    CheckpointError
        A checkpoint cannot be read.
    JournalError
        Another process has the journal, or there is one that is not to be continued, or cannot be.
    NothingToCompareError
        No matrix of them is changed.
    """
    if not isinstance(options, CompareOptions):  # a survey's have more, which would be ignored
        raise OptionError(f"options is a {type(options).__name__}; accepted: CompareOptions")
    if is_adapter_folder(tuned):
        raise CheckpointError(
            f"tuned is {shown(str(tuned))}, the folder of a LoLDU adapter, whose updates are made from the base's "
            "weights; accepted: lowrank_ldu.adapters.open_updates(path)"
        )
    check_keeping(base, tuned, journal=journal, resume=check_flag(resume, "resume"), engine=engine)
    environment = environment_of(options, engine)
    start = time.perf_counter()
    if is_adapter_folder(base):
        raise _adapter_as_base(base)
    with open_source(base, "base") as base_reader, open_source(tuned, "tuned") as tuned_reader:
        if base_reader.holds_updates:
            raise _adapter_as_base(base_reader.path)
        listed, prefixes = pair_up(base_reader, tuned_reader)
        pairs, updates = {pair.name: pair for pair in listed}, tuned_reader.holds_updates
        results = leave_out(listed, options, updates=updates)
        chosen = {name: pair.base for name, pair in pairs.items() if name not in results and pair.base is not None}
        executor = executor_of(pairs, base_reader, tuned_reader, options, engine)

        def work(known: Sequence[PairResult]) -> Iterator[PairResult]:
            _check_base_policy(known, tuned_reader, journal)
            finished = {result.name: chosen[result.name] for result in known}
            left = (info for name, info in chosen.items() if name not in finished)
            return (outcome for _, outcome in work_through(left, executor, progress, finished=finished.values()))

        compared, before = gather(
            COMPARISON_RESULTS,
            work,
            chosen,
            options=options,
            readers={"base": base_reader, "tuned": tuned_reader},
            journal=journal,
            resume=resume,
            start=start,
        )
        results |= {result.name: result for result in compared}
        opened = str(base_reader.path), str(tuned_reader.path)
    ordered = [results[name] for name in pairs]
    seconds = before + time.perf_counter() - start
    comparison = CheckpointComparison(*opened, options, environment, seconds, ordered, prefixes, updates)
    if not comparison.matrices:
        raise NothingToCompareError(f"{opened[0]} and {opened[1]}: {_nothing_compared(ordered)}")
    return comparison


def _adapter_as_base(path: object) -> CheckpointError:
    return CheckpointError(
        f"{path}: holds the updates of an adapter, and is given as the base; accepted: the weights that it was trained "
        "on, with the adapter as the tuned side"
    )


def _check_base_policy(known: Sequence[PairResult], tuned: WeightsReader, journal: object) -> None:
    """Refuse results of a journal whose base would not be accepted now."""
    if tuned.updates is None or tuned.updates.accepts_other_base:
        return
    accepted = next((result.name for result in known if result.comparison is not None and result.reason), None)
    if accepted is not None:
        raise JournalError(
            f"{journal}: has the update of {accepted!r} for a base that is not the one of training; accepted: "
            "accept_other_base=True (--accept-other-base) again, or remove the file to begin anew"
        )


def _nothing_compared(results: list[PairResult]) -> str:
    if not results:
        return "they hold no tensors at all"
    # What is accepted is said once, after all reasons.
    said = [(result.status, *str(result.reason).partition(_ACCEPTED)[::2]) for result in results]
    counts = Counter(f"{status}: {reason}" for status, reason, _ in said)
    reasons = [f"{count} x {reason}" for reason, count in counts.most_common()]
    accepted = next((f"{_ACCEPTED}{accepted}" for _, _, accepted in said if accepted), "")
    return f"no matrix is in both and changed; {list_reasons(reasons)}{accepted}"
