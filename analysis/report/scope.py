"""Which matrices a statement about a rank is about."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lowrank_ldu.analysis.matrix import MatrixAnalysis, Measurement
    from lowrank_ldu.analysis.run import Analysis
    from lowrank_ldu.analysis.survey import TensorResult
    from lowrank_ldu.decomposition import Pivoting


@dataclass(frozen=True)
class Scope:
    """Matrices at a rank below their full one, or at full rank.

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
        """Where in words: "rank 64" or "full rank"."""
        return "full rank" if self.rank is None else f"rank {self.rank}"

    def ldu(self, pivoting: Pivoting) -> list[Measurement]:
        """Return the measurement of LDU on each matrix."""
        return [matrix.at("ldu", self.rank or min(matrix.m, matrix.n), pivoting) for matrix in self.matrices]


def headline_matrices(analysis: Analysis) -> list[tuple[TensorResult, MatrixAnalysis]]:
    """Return the matrices whose full rank is above the headline rank, with their names, or all if none is."""
    rank = analysis.headline_rank
    larger = [pair for pair in analysis.matrices if min(pair[1].m, pair[1].n) > rank]
    return larger or analysis.matrices


def headline_scope(analysis: Analysis) -> Scope:
    """Return the matrices whose full rank is above the headline rank, or all at full rank if none is."""
    rank = analysis.headline_rank
    matrices = [matrix for _, matrix in headline_matrices(analysis)]
    return Scope(matrices, rank if min(matrices[0].m, matrices[0].n) > rank else None)
