"""Choose the matrices that a statement about a rank covers."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from lowrank_ldu.formatting import figure, interval

if TYPE_CHECKING:
    from collections.abc import Iterable

    from lowrank_ldu.analysis.engine.survey import TensorResult
    from lowrank_ldu.analysis.measures.matrix import MatrixAnalysis, Measurement
    from lowrank_ldu.analysis.measures.needed import NeededRank
    from lowrank_ldu.analysis.result import Analysis
    from lowrank_ldu.decomposition import Pivoting


@dataclass(frozen=True)
class Scope:
    """Hold matrices and the rank of a statement.

    Attributes
    ----------
    matrices : list of MatrixAnalysis
        Not empty.
    rank : int or None
        None is the full rank of each.
    """

    matrices: list[MatrixAnalysis]
    rank: int | None

    @property
    def place(self) -> str:
        """Rank in words: "rank 64" or "full rank"."""
        return "full rank" if self.rank is None else f"rank {self.rank}"

    def ldu(self, pivoting: Pivoting) -> list[Measurement]:
        """Return the measurement of LDU on each matrix."""
        return [matrix.at("ldu", self.rank or min(matrix.m, matrix.n), pivoting) for matrix in self.matrices]


def headline_matrices(analysis: Analysis) -> list[tuple[TensorResult, MatrixAnalysis]]:
    """Return the matrices whose full rank is above the headline rank.

    With their names; all matrices if none is above.
    """
    rank = analysis.headline_rank
    larger = [pair for pair in analysis.matrices if min(pair[1].m, pair[1].n) > rank]
    return larger or analysis.matrices


def headline_scope(analysis: Analysis) -> Scope:
    """Return the scope of the headlines.

    The matrices whose full rank is above the headline rank, or all at full rank if none is.
    """
    rank = analysis.headline_rank
    matrices = [matrix for _, matrix in headline_matrices(analysis)]
    return Scope(matrices, rank if min(matrices[0].m, matrices[0].n) > rank else None)


def least_error(matrix: MatrixAnalysis, rank: int) -> tuple[float, float]:
    """Bound the least relative Frobenius error at min(rank, k).

    Both bounds are equal if the SVD is exact.
    """
    rank = min(rank, matrix.m, matrix.n)
    figures = (measurement.diagnostics for measurement in matrix.measurements)
    high = next(item.svd_frobenius_error for item in figures if item.rank == rank)
    if matrix.svd_niter is None:
        return high, high
    # Both come from the same bounds of the energy; where they meet, rounding may exchange them.
    return min(math.sqrt(max(1.0 - matrix.spectrum.energy_bound[rank], 0.0)), high), high


def stable_rank(matrix: MatrixAnalysis) -> str:
    """Return the stable rank in words: an upper bound where the largest singular value is a lower one."""
    return f"{'' if matrix.svd_niter is None else '≤ '}{figure(matrix.spectrum.stable_rank)}"


def energy(matrix: MatrixAnalysis, rank: int) -> str:
    """Return the energy of the best terms in words.

    The rank is a measured one; an interval where the share is not known.
    """
    return interval(matrix.spectrum.energy[rank], matrix.spectrum.energy_bound[rank])


def needed_in_words(needed: NeededRank) -> str:
    """Return the smallest rank for a target error in words."""
    if needed.rank is None:
        return "unknown" if needed.bound else f"> {needed.looked_at}"
    return f"{'≤ ' if needed.bound else ''}{needed.rank}"


def needed_and_saved(needed: NeededRank, matrix: MatrixAnalysis) -> str:
    """Return the smallest rank for a target error, and the change in numbers against the weight, in words."""
    rank = needed_in_words(needed)
    if needed.numbers is None:
        return rank
    change = needed.numbers / matrix.size - 1
    return f"{rank} ({change:+.0%})".replace("-", "\N{MINUS SIGN}")


def seconds_of(measurements: Iterable[Measurement]) -> list[float]:
    """Return the times of measurements that have one."""
    return [item.seconds for item in measurements if item.seconds is not None]


def seconds_of_svd(matrices: Iterable[MatrixAnalysis]) -> list[float]:
    """Return the times of the SVDs that were timed."""
    return [matrix.svd_seconds for matrix in matrices if matrix.svd_seconds is not None]


def svd_name(matrices: Iterable[MatrixAnalysis]) -> str:
    """Name the SVD: exact, randomized, or of both kinds."""
    kinds = {matrix.svd_niter is None for matrix in matrices}
    if kinds == {True}:
        return "exact SVD"
    return "randomized SVD" if kinds == {False} else "randomized or exact SVD"


def best_name(matrices: Iterable[MatrixAnalysis]) -> str:
    """Name the error of the SVD for a legend."""
    name = svd_name(matrices)
    return f"{name} (best possible)" if name == "exact SVD" else "SVD (upper bound of best)"
