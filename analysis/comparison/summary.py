"""Summarize a comparison in rows and sentences."""

from __future__ import annotations

from dataclasses import dataclass
from statistics import median
from typing import TYPE_CHECKING

from lowrank_ldu.formatting import figure

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from lowrank_ldu.analysis.comparison.matrix import MatrixComparison
    from lowrank_ldu.analysis.comparison.pairs import Prefixes
    from lowrank_ldu.analysis.comparison.run import CheckpointComparison
    from lowrank_ldu.decomposition import Pivoting


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

    Every method at each rank asked for and at the full one, then LoRA of rank 1.
    """
    matrices = [matrix for _, matrix in comparison.matrices]
    rows: list[SummaryRow] = []
    for rank in (*comparison.options.ranks, None):
        scope = [matrix for matrix in matrices if rank is None or rank < matrix.full_rank]
        if scope:
            rows += _at(rank, scope, comparison.options.pivoting)
    rows.append(
        SummaryRow(
            "rank 1",
            "LoRA, its least",
            median(matrix.least_lora for matrix in matrices),
            Spread.of(matrix.spectrum.energy[1] for matrix in matrices),
            len(matrices),
        )
    )
    return rows


def _at(rank: int | None, scope: list[MatrixComparison], strategies: Iterable[Pivoting]) -> Iterator[SummaryRow]:
    place = "full rank" if rank is None else f"rank {rank}"

    def row(
        method: str,
        numbers: Callable[[MatrixComparison, int], float],
        explained: Callable[[MatrixComparison, int], float],
    ) -> SummaryRow:
        ranks = [rank or matrix.full_rank for matrix in scope]
        pairs = list(zip(scope, ranks, strict=True))
        return SummaryRow(
            place,
            method,
            median(numbers(*pair) for pair in pairs),
            Spread.of(explained(*pair) for pair in pairs),
            len(scope),
        )

    for pivoting in strategies:
        yield row(
            f"LDU, {pivoting}",
            lambda _, at: at + 1,
            lambda matrix, at, pivoting=pivoting: matrix.ldu[pivoting].explained[at],  # type: ignore[misc]
        )
    yield row("SVD basis", lambda _, at: at + 1, lambda matrix, at: matrix.svd.explained[at])
    yield row("random, expected", lambda _, at: at + 1, lambda matrix, at: matrix.random(at))
    if rank is not None:  # at full rank LoRA is a dense update
        yield row("LoRA", lambda matrix, at: at * matrix.least_lora, lambda matrix, at: matrix.spectrum.energy[at])


def comparison_headlines(comparison: CheckpointComparison) -> list[str]:
    """Return the results of a comparison in sentences."""
    matrices = [matrix for _, matrix in comparison.matrices]
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
            f"{len(matrices)} matrices were changed, {len(comparison.unchanged)} are equal in every entry. The "
            f"updates are {norm} of their weights in the Frobenius norm, with a stable rank of {stable} and an "
            f"effective rank of {effective} (medians, least and greatest)."
        )
    ]
    if comparison.updates:
        sentences.append(
            "The tuned side is an adapter: its updates are measured, and weights that it has nothing of are unchanged."
        )
    sentences += _prefix_sentences(comparison.prefixes)
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


def _prefix_sentences(prefixes: Prefixes) -> list[str]:
    return [
        f"Names of the {side} are compared without the {prefix!r} that they have before those of the other side."
        for side, prefix in (("base", prefixes.base), ("tuned checkpoint", prefixes.tuned))
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
