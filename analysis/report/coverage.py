"""Say how much of a checkpoint an analysis covers."""

from __future__ import annotations

import re
from collections import Counter
from typing import TYPE_CHECKING

from lowrank_ldu.analysis.engine.executor import list_reasons
from lowrank_ldu.analysis.selection import RANK_ONE, matrix_shape
from lowrank_ldu.checkpoints.reader import MOMENT

if TYPE_CHECKING:
    from lowrank_ldu.analysis.engine.survey import TensorResult
    from lowrank_ldu.analysis.result import Analysis

# Integers that nobody packs weights into: indices, positions, masks.
_COUNTS = re.compile(r"bool|u?int16|u?int64")


def coverage(analysis: Analysis) -> str:
    """Return whether all matrices of a checkpoint were analyzed, in a sentence.

    A matrix is every tensor of two dimensions or more whose sides are longer than 1, but for integers that hold no
    weights and for what an optimizer keeps.
    """
    left_out = Counter(result.reason or "" for result in analysis.skipped if _may_be_a_matrix(result))
    count, missing = len(analysis.matrices), sum(left_out.values())
    if not missing:
        return f"COMPLETE: all matrices are analyzed, {count} of {count}."
    reasons = list_reasons([f"{number} x {reason}" for reason, number in left_out.most_common()])
    return f"PARTIAL: {count} of {count + missing} matrices are analyzed; left out: {reasons}."


def _may_be_a_matrix(result: TensorResult) -> bool:
    if result.shape is None or len(result.shape) < 2 or _COUNTS.fullmatch(result.dtype):
        return False
    if result.reason in {MOMENT, RANK_ONE}:  # the latter of axes in their order, which the shape does not tell
        return False
    return min(matrix_shape(result.shape)) > 1
