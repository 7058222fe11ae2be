"""Where a claim is tested: the matrices at a rank below their full one, and all of them at full rank."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from lowrank_ldu.analysis.report.scope import Scope

if TYPE_CHECKING:
    from collections.abc import Iterator

    from lowrank_ldu.analysis.matrix import MatrixAnalysis, Measurement
    from lowrank_ldu.analysis.run import Analysis
    from lowrank_ldu.decomposition import Pivoting

# Of the LDU in the paper and in its published code.
PAPER: Pivoting = "partial"


@dataclass(frozen=True)
class Place:
    """Matrices at one rank, with their names.

    Attributes
    ----------
    names : list of str
    scope : Scope
        Matrices in the order of the names, perhaps none.
    """

    names: list[str]
    scope: Scope

    @property
    def rank(self) -> int | None:
        """The rank, or None for the full rank of each."""
        return self.scope.rank

    def ldu(self, pivoting: Pivoting = PAPER) -> Iterator[tuple[str, MatrixAnalysis, Measurement]]:
        """Yield name, matrix and its LDU."""
        yield from zip(self.names, self.scope.matrices, self.scope.ldu(pivoting), strict=True)


def places_below_full_rank(analysis: Analysis) -> list[Place]:
    """Return a place for each rank asked for, with the matrices whose full rank is above it."""
    places = []
    for rank in analysis.options.ranks:
        larger = [(tensor.name, matrix) for tensor, matrix in analysis.matrices if min(matrix.m, matrix.n) > rank]
        places.append(Place([name for name, _ in larger], Scope([matrix for _, matrix in larger], rank)))
    return places


def full_rank(analysis: Analysis) -> Place:
    """Return all matrices at full rank."""
    return Place(
        [tensor.name for tensor, _ in analysis.matrices], Scope([matrix for _, matrix in analysis.matrices], None)
    )
