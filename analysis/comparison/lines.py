"""Name the lines of a comparison's plots: what each is of, and how it looks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from lowrank_ldu.analysis.report.panel import COLORS, MARKERS

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from lowrank_ldu.analysis.comparison.matrix import MatrixComparison
    from lowrank_ldu.decomposition import Pivoting

LOOKS = COLORS | {"lora": "#C78500", "random": "#666666"}
_MARKERS = MARKERS | {"lora": "v", "random": "|"}
_STYLES = {"lora": "--", "random": ":"}


@dataclass(frozen=True)
class Line:
    """Hold what is drawn of one way to write an update down.

    Attributes
    ----------
    method : str
        A key of `LOOKS`.
    short, label : str
        In tables and in legends.
    curve : callable
        The shares of a matrix at its `curve_ranks`.
    share : callable
        The share of a matrix at one of the ranks that were asked for, or at its full rank.
    numbers : callable
        What a matrix trains at a rank.
    """

    method: str
    short: str
    label: str
    curve: Callable[[MatrixComparison], list[float | None]]
    share: Callable[[MatrixComparison, int], float]
    numbers: Callable[[MatrixComparison, int], int]

    @property
    def color(self) -> str:
        """Of the line."""
        return LOOKS[self.method]

    @property
    def marker(self) -> str:
        """Of a point."""
        return _MARKERS[self.method]

    @property
    def style(self) -> str:
        """Of the line: solid, dashed or dotted."""
        return _STYLES.get(self.method, "-")


def lines_of(strategies: Iterable[Pivoting]) -> list[Line]:
    """Return the lines of a comparison."""
    return [
        *map(_of_ldu, strategies),
        Line(
            "svd",
            "SVD basis",
            "base's singular vectors",
            lambda matrix: matrix.svd.curve,
            lambda matrix, rank: matrix.svd.explained[rank],
            _diagonal,
        ),
        Line(
            "random",
            "random, expected",
            "random update",
            lambda matrix: [matrix.random(rank) for rank in matrix.curve_ranks],
            lambda matrix, rank: matrix.random(rank),
            _diagonal,
        ),
        Line(
            "lora",
            "LoRA",
            "LoRA (best possible)",
            lambda matrix: list(matrix.lora_curve),
            lambda matrix, rank: matrix.spectrum.energy[rank],
            lambda matrix, rank: rank * matrix.least_lora,
        ),
    ]


def _of_ldu(pivoting: Pivoting) -> Line:
    return Line(
        pivoting,
        f"LDU, {pivoting}",
        f"LDU of the base, {pivoting}",
        lambda matrix: matrix.ldu[pivoting].curve,
        lambda matrix, rank: matrix.ldu[pivoting].explained[rank],
        _diagonal,
    )


def _diagonal(_: MatrixComparison, rank: int) -> int:
    return rank + 1  # with the scale
