"""Say how much of a checkpoint an analysis covers."""

from __future__ import annotations

import re
from collections import Counter
from typing import TYPE_CHECKING

from lowrank_ldu.analysis.engine.executor import list_reasons
from lowrank_ldu.analysis.selection import RANK_ONE, UNREAD, matrix_shape
from lowrank_ldu.checkpoints.reader import NO_WEIGHT, SAME_TENSOR

if TYPE_CHECKING:
    from lowrank_ldu.analysis.engine.survey import TensorResult
    from lowrank_ldu.analysis.result import Analysis

# Integers that nobody packs weights into: indices, positions, masks.
_COUNTS = re.compile(r"bool|u?int16|u?int64")


def coverage(analysis: Analysis) -> str:
    """Return whether all matrices of a checkpoint were analyzed, in a sentence.

    A matrix is every tensor of two dimensions or more whose sides are longer than 1, but for integers that hold no
    weights, for what an optimizer keeps or a recurrent layer adds, and for names of a tensor that has another one. What
    could not be loaded may hold more of them.
    """
    left_out = Counter(result.reason or "" for result in analysis.skipped if _may_be_a_matrix(result))
    reasons = [result.reason or "" for result in analysis.skipped if result.shape is None]
    unread = Counter(reason.removeprefix(UNREAD) for reason in reasons if reason.startswith(UNREAD))
    count, missing = len(analysis.matrices), sum(left_out.values())
    if not missing and not unread:
        return f"COMPLETE: all matrices are analyzed, {count} of {count}."
    more = f"; left out: {_listed(left_out)}" if missing else ""
    more += f"; not read, and may hold more: {_listed(unread)}" if unread else ""
    return f"PARTIAL: {count} of {count + missing} matrices are analyzed{more}."


def _listed(reasons: Counter[str]) -> str:
    return list_reasons([f"{number} x {reason}" for reason, number in reasons.most_common()])


def _may_be_a_matrix(result: TensorResult) -> bool:
    if result.shape is None or len(result.shape) < 2 or _COUNTS.fullmatch(result.dtype):
        return False
    reason = result.reason or ""
    # Axes in their order tell a rank of 1, and the shape does not.
    if reason == RANK_ONE or reason.endswith(NO_WEIGHT) or reason.startswith(SAME_TENSOR):
        return False
    return min(matrix_shape(result.shape)) > 1
