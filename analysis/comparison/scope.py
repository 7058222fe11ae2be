"""Say what a comparison's two sides are called, and which matrices its statements cover."""

from __future__ import annotations

from itertools import zip_longest
from pathlib import PurePath
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from lowrank_ldu.analysis.comparison.matrix import MatrixComparison
    from lowrank_ldu.analysis.comparison.pairs import PairResult
    from lowrank_ldu.analysis.comparison.result import CheckpointComparison

    _Matrices = list[tuple[PairResult, MatrixComparison]]

# Heads have a row for each class, and few of them; no layer in between is so narrow.
FEWEST = 16
WHY_LEFT_OUT = (
    f"A side of it is shorter than {FEWEST}, as of a head of few classes: its full rank is so low that LoRA of rank 1 "
    "holds much of any update, and a diagonal has hardly a number. The summary, bands and extremes are without it."
)


class Sides(NamedTuple):
    """Hold the names of the two sides."""

    base: str
    tuned: str


def sides_of(comparison: CheckpointComparison) -> Sides:
    """Return the last components of the two paths: one, or as many as tell them apart.

    Paths that are equal, as of two state dicts, keep their last component.
    """
    base, tuned = (PurePath(path).parts or (path,) for path in (comparison.base, comparison.tuned))
    pairs = zip_longest(reversed(base), reversed(tuned))
    count = next((count for count, (one, other) in enumerate(pairs, 1) if one != other), 1)
    return Sides(*("/".join(parts[-count:]) for parts in (base, tuned)))


def typical_matrices(comparison: CheckpointComparison) -> _Matrices:
    """Return the matrices that statements, bands and extremes cover.

    Those whose sides are at least `FEWEST`, or all where there are none.
    """
    return [pair for pair in comparison.matrices if pair[1].full_rank >= FEWEST] or comparison.matrices


def narrow_matrices(comparison: CheckpointComparison) -> _Matrices:
    """Return the other matrices, which have so few rows or columns that they are no measure of others."""
    typical = {tensor.name for tensor, _ in typical_matrices(comparison)}
    return [pair for pair in comparison.matrices if pair[0].name not in typical]


def matrices_above(comparison: CheckpointComparison, rank: int) -> _Matrices:
    """Return the typical matrices whose full rank is above a rank, or all typical ones if none is."""
    typical = typical_matrices(comparison)
    return [pair for pair in typical if pair[1].full_rank > rank] or typical
