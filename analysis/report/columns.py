"""The columns of the page's table: label, value and definition in one place."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Generic, TypeVar

from lowrank_ldu.analysis.report.formatting import duration, figure

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from lowrank_ldu.analysis.matrix import MatrixAnalysis
    from lowrank_ldu.decomposition import Pivoting

_Matrix = TypeVar("_Matrix")


@dataclass(frozen=True)
class Column(Generic[_Matrix]):
    """One column: its heading, what it means, the number in it for a matrix's results, and how that is written."""

    label: str
    definition: str
    value: Callable[[_Matrix], float | None]
    write: Callable[[float], str] = figure


@dataclass(frozen=True)
class Cell:
    """One number: as it is sorted and as it is shown."""

    sort_key: float | None
    text: str


def cells(columns: list[Column[_Matrix]], matrix: _Matrix) -> list[Cell]:
    """Return a matrix's row."""
    values = [column.value(matrix) for column in columns]
    return [
        Cell(value, figure(None) if value is None else column.write(value))
        for column, value in zip(columns, values, strict=True)
    ]


def columns(strategies: Iterable[Pivoting], rank: int) -> list[Column[MatrixAnalysis]]:
    """Return the columns after the tensor's name, shape and dtype."""
    listed: list[Column[MatrixAnalysis]] = [
        Column("stable rank", "‖W‖²_F / ‖W‖²_2, from 1 to k = min(m, n).", lambda matrix: matrix.spectrum.stable_rank),
        Column(
            "effective rank",
            "exp of the entropy of the singular values scaled to sum 1, from 1 to k.",
            lambda matrix: matrix.spectrum.effective_rank,
        ),
        Column(
            "energy",
            f"Share of ‖W‖²_F that the first {rank} singular values hold.",
            lambda matrix: matrix.spectrum.energy[min(rank, matrix.m, matrix.n)],
        ),
        Column(
            "SVD error",
            "‖W - W_r‖_F / ‖W‖_F of the truncated exact SVD: the least that any matrix of this rank can have.",
            lambda matrix: matrix.at("pissa", rank).diagnostics.svd_frobenius_error,
        ),
        Column(
            "PiSSA error",
            "The same for quick PiSSA: randomised SVD with 4 power iterations and no oversampling.",
            lambda matrix: matrix.at("pissa", rank).diagnostics.frobenius_error,
        ),
    ]
    for pivoting in strategies:
        listed += _of_strategy(pivoting, rank)
    listed += [
        Column("PiSSA time", "Time to compute quick PiSSA.", lambda matrix: matrix.at("pissa", rank).seconds, duration),
        Column("SVD time", "Time of the exact SVD, vectors included.", lambda matrix: matrix.svd_seconds, duration),
    ]
    return listed


def _of_strategy(pivoting: Pivoting, rank: int) -> Iterator[Column[MatrixAnalysis]]:
    def of(name: str) -> Callable[[MatrixAnalysis], float | None]:
        return lambda matrix: getattr(matrix.at("ldu", rank, pivoting).diagnostics, name)

    yield Column(
        f"{pivoting} error",
        f"‖W - L diag(z) U‖_F / ‖W‖_F of the leading LDU terms with {pivoting} pivoting; above 1 is worse than the "
        "zero matrix.",
        of("frobenius_error"),
    )
    yield Column(
        f"{pivoting} refit",
        "The same with the diagonal z that is best for these L and U (least squares).",
        of("refit_frobenius_error"),
    )
    yield Column(
        f"{pivoting} cond(G)",
        "Condition number of the Gram matrix of the rank-one terms, (LᵀL) ∘ (UUᵀ), the metric of z.",
        of("condition_gram"),
    )
    yield Column(
        f"{pivoting} growth", "Largest entry met in the elimination over the largest entry of W.", of("growth_factor")
    )
    yield Column(
        f"{pivoting} time",
        f"Time to factor to this rank with {pivoting} pivoting.",
        lambda matrix: matrix.at("ldu", rank, pivoting).seconds,
        duration,
    )
