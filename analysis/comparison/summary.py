"""Summarize a comparison in rows and sentences."""

from __future__ import annotations

from dataclasses import dataclass
from statistics import median
from typing import TYPE_CHECKING

from lowrank_ldu.analysis.comparison.lines import Line, lines_of
from lowrank_ldu.analysis.comparison.scope import FEWEST, narrow_matrices, sides_of, typical_matrices
from lowrank_ldu.formatting import figure, printable

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from lowrank_ldu.analysis.comparison.matrix import MatrixComparison
    from lowrank_ldu.analysis.comparison.result import CheckpointComparison
    from lowrank_ldu.decomposition import Pivoting

# Of the matrices with few rows, in a sentence.
_MOST_NAMED = 3


@dataclass(frozen=True)
class Spread:
    """Hold the least, median and greatest of a figure."""

    least: float
    median: float
    greatest: float

    @classmethod
    def of(cls, values: Iterable[float]) -> Spread:
        """Return the spread of one or more values."""
        listed = list(values)
        return cls(min(listed), median(listed), max(listed))

    def __str__(self) -> str:
        return f"{figure(self.median)} ({figure(self.least)} to {figure(self.greatest)})"


@dataclass(frozen=True)
class SummaryRow:
    """Hold the shares of one method at one rank.

    Over the matrices whose full rank is above it.

    Attributes
    ----------
    place : str
        "rank 64" or "full rank".
    method : str
    numbers : float
        Median of the numbers that are trained for each matrix.
    explained : Spread
        Of the share of the update that it can express at best; for random updates, of the expected one.
    matrices : int
    """

    place: str
    method: str
    numbers: float
    explained: Spread
    matrices: int


def summary_rows(comparison: CheckpointComparison) -> list[SummaryRow]:
    """Return the rows of the summary.

    Every method at each rank asked for and at the full one, then LoRA of rank 1. Matrices with a side shorter than 16
    do not count, where there are others.
    """
    matrices = [matrix for _, matrix in typical_matrices(comparison)]
    rows: list[SummaryRow] = []
    for rank in (*comparison.options.ranks, None):
        scope = [matrix for matrix in matrices if rank is None or rank < matrix.full_rank]
        if scope:
            rows += _at(rank, scope, lines_of(comparison.options.pivoting))
    least = next(line for line in lines_of(()) if line.method == "lora")
    rows.append(_row("rank 1", f"{least.short}, its least", least, [(matrix, 1) for matrix in matrices]))
    return rows


def _at(rank: int | None, scope: list[MatrixComparison], lines: list[Line]) -> Iterator[SummaryRow]:
    place = "full rank" if rank is None else f"rank {rank}"
    for line in lines:
        if line.method != "lora" or rank is not None:  # at full rank LoRA is a dense update
            yield _row(place, line.short, line, [(matrix, rank or matrix.full_rank) for matrix in scope])


def _row(place: str, method: str, line: Line, pairs: list[tuple[MatrixComparison, int]]) -> SummaryRow:
    return SummaryRow(
        place,
        method,
        median(line.numbers(*pair) for pair in pairs),
        Spread.of(line.share(*pair) for pair in pairs),
        len(pairs),
    )


def comparison_headlines(comparison: CheckpointComparison) -> list[str]:
    """Return the results of a comparison in sentences."""
    matrices = [matrix for _, matrix in typical_matrices(comparison)]
    norm, stable, effective = (
        Spread.of(values)
        for values in (
            [matrix.relative_norm for matrix in matrices],
            [matrix.spectrum.stable_rank for matrix in matrices],
            [matrix.spectrum.effective_rank or 0.0 for matrix in matrices],  # all singular values are known here
        )
    )
    sentences = [
        (
            f"{len(comparison.matrices)} matrices were changed, {len(comparison.unchanged)} are equal in every entry. "
            f"The updates are {norm} of their weights in the Frobenius norm, with a stable rank of {stable} and an "
            f"effective rank of {effective} (medians, least and greatest)."
        )
    ]
    sentences += _narrow_sentences(comparison)
    if comparison.updates:
        sentences.append(
            "The tuned side is an adapter: its updates are measured, and weights that it has nothing of are unchanged."
        )
    sentences += _other_base_sentences(comparison)
    sentences += _prefix_sentences(comparison)
    sentences += [_full_rank_sentence(matrices, pivoting) for pivoting in comparison.options.pivoting]
    singular = Spread.of(matrix.svd.explained[matrix.full_rank] for matrix in matrices)
    sentences.append(f"A diagonal between all of the base's singular vectors can express {singular}.")
    shares = Spread.of((matrix.full_rank + 1) / matrix.least_lora for matrix in matrices)
    sentences.append(
        "No LoRA trains as few numbers as an LDU diagonal: with the scale, one of full rank has "
        f"{figure(shares.median)} times (at most {figure(shares.greatest)}) those of LoRA of rank 1, the least there "
        f"is, which can express {Spread.of(matrix.spectrum.energy[1] for matrix in matrices)}."
    )
    return sentences


def _narrow_sentences(comparison: CheckpointComparison) -> list[str]:
    narrow = narrow_matrices(comparison)
    if not narrow:
        return []
    named = ", ".join(f"{printable(tensor.name)} ({matrix.m} x {matrix.n})" for tensor, matrix in narrow[:_MOST_NAMED])
    more = f" and {len(narrow) - _MOST_NAMED} more" if len(narrow) > _MOST_NAMED else ""
    are = "1 matrix of them has" if len(narrow) == 1 else f"{len(narrow)} matrices of them have"
    sentence = (
        f"{are} a side shorter than {FEWEST}: {named}{more}. So low a full rank is no measure of others (LoRA of rank "
        "1 holds much of any such update): all other figures, bands and extremes here are over the rest."
    )
    return [sentence]


def _other_base_sentences(comparison: CheckpointComparison) -> list[str]:
    deviating = [tensor for tensor, _ in comparison.matrices if tensor.reason is not None]
    if not deviating:
        return []
    are = "1 update is" if len(deviating) == 1 else f"{len(deviating)} updates are"
    first = f"{printable(deviating[0].name)}: {printable(str(deviating[0].reason))}"
    sentence = f"{are} of weights other than those of training, or come out otherwise, which was accepted."
    return [f"{sentence} The first is {first}. How far off each is stands in `tensors` as its reason."]


def _prefix_sentences(comparison: CheckpointComparison) -> list[str]:
    sides, prefixes = sides_of(comparison), comparison.prefixes
    return [
        f"Names of the {side} ({printable(name)}) are compared without the {prefix!r} that they have before those of "
        "the other side."
        for side, name, prefix in (
            ("base", sides.base, prefixes.base),
            ("tuned checkpoint", sides.tuned, prefixes.tuned),
        )
        if prefix
    ]


def _full_rank_sentence(matrices: list[MatrixComparison], pivoting: Pivoting) -> str:
    shares = [matrix.ldu[pivoting].explained[matrix.full_rank] for matrix in matrices]
    times = Spread.of(
        share / matrix.random(matrix.ldu[pivoting].independent[matrix.full_rank])
        for share, matrix in zip(shares, matrices, strict=True)
    )
    return (
        f"The diagonal of a full-rank LDU with {pivoting} pivoting can express at best a share of "
        f"{Spread.of(shares)} of an update: {times} times what it would hold of a random one."
    )
