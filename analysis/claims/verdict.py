"""Define claims, their tests and verdicts."""

from __future__ import annotations

from dataclasses import dataclass, field
from statistics import median
from typing import TYPE_CHECKING

from lowrank_ldu.analysis.report.scope import Scope

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from lowrank_ldu.analysis.measures.matrix import MatrixAnalysis, Measurement
    from lowrank_ldu.analysis.result import Analysis
    from lowrank_ldu.decomposition import Pivoting


@dataclass(frozen=True)
class MatrixCase:
    """Hold the figures of one matrix under one test.

    Attributes
    ----------
    tensor : str
        Its name in the checkpoint.
    rank : int
        Number of terms measured.
    figures : dict of str to int or float
        What was measured; names that end in `seconds` are seconds, all others are ratios, or counts, which are int.
    holds : bool
        Whether the claim's rule is met.
    """

    tensor: str
    rank: int
    figures: dict[str, int | float]
    holds: bool


@dataclass(frozen=True)
class Finding:
    """Hold one test of a claim at one rank.

    Attributes
    ----------
    test : str
        What was tested, in a few words.
    rank : int or None
        None is the full rank of each matrix.
    measured : str
        The figures in words; empty where there is no case.
    cases : list of MatrixCase
        A case a matrix; at a rank, the matrices whose full rank is above it.
    counts : dict of str to int
        Numbers of matrices that the measured text speaks of, beside those for which the rule is met.
    """

    test: str
    rank: int | None
    measured: str
    cases: list[MatrixCase]
    counts: dict[str, int] = field(default_factory=dict)

    @property
    def place(self) -> str:
        """Rank in words: "rank 64" or "full rank"."""
        return "full rank" if self.rank is None else f"rank {self.rank}"

    @property
    def medians(self) -> dict[str, float]:
        """Median of each figure over the cases; empty without cases."""
        return medians(self.cases)

    @property
    def verdict(self) -> str:
        """What follows from the cases, by `verdict`."""
        return verdict([case.holds for case in self.cases])

    def __repr__(self) -> str:
        return f"Finding {self.test}, {self.place}: {self.verdict} ({self.measured or 'nothing measured'})"


@dataclass(frozen=True)
class Claim:
    """Hold a claim of the paper and its tests.

    Attributes
    ----------
    name : str
        A word.
    statement : str
        What is claimed.
    source : str
        Where the paper claims it.
    rule : str
        When it counts as true of one matrix.
    findings : list of Finding
    """

    name: str
    statement: str
    source: str
    rule: str
    findings: list[Finding]


def verdict(outcomes: Sequence[bool]) -> str:
    """Return the verdict on a claim in words.

    A claim may be true of some matrices and false of others.

    Parameters
    ----------
    outcomes : sequence of bool
        For each matrix, whether the rule is met.

    Examples
    --------
    >>> [verdict(outcomes) for outcomes in ([True, True], [False], [True, False, False], [])]
    ['holds', 'does not hold', 'holds for 1 of 3 matrices', 'not tested']
    """
    if not outcomes:
        return "not tested"
    held = sum(outcomes)
    if held == len(outcomes):
        return "holds"
    return f"holds for {held} of {len(outcomes)} matrices" if held else "does not hold"


def medians(cases: Sequence[MatrixCase]) -> dict[str, float]:
    """Return the median of each figure over the cases.

    All cases have the same figures.

    Examples
    --------
    >>> medians([MatrixCase("a", 1, {"error": 0.5}, True), MatrixCase("b", 1, {"error": 0.7}, True)])
    {'error': 0.6}
    """
    return {name: median(case.figures[name] for case in cases) for name in (cases[0].figures if cases else ())}


# Pivoting of the LDU in the paper and in its published code.
PAPER: Pivoting = "partial"


@dataclass(frozen=True)
class NamedScope:
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


def scopes_below_full_rank(analysis: Analysis) -> list[NamedScope]:
    """Return the matrices at each rank asked for.

    At a rank they are those whose full rank is above it.
    """
    places = []
    for rank in analysis.options.ranks:
        larger = [(tensor.name, matrix) for tensor, matrix in analysis.matrices if min(matrix.m, matrix.n) > rank]
        places.append(NamedScope([name for name, _ in larger], Scope([matrix for _, matrix in larger], rank)))
    return places


def full_rank_scope(analysis: Analysis) -> NamedScope:
    """Return all matrices at full rank."""
    return NamedScope(
        [tensor.name for tensor, _ in analysis.matrices], Scope([matrix for _, matrix in analysis.matrices], None)
    )
