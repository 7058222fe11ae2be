"""Define the columns of the page's table."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Generic, TypeVar

from lowrank_ldu.analysis.measures.recommendation import least_needed
from lowrank_ldu.analysis.report.advice import SHORT, advice_of
from lowrank_ldu.analysis.report.scope import energy, least_error, needed_and_saved, stable_rank
from lowrank_ldu.formatting import duration, figure, interval

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from lowrank_ldu.analysis.measures.matrix import MatrixAnalysis
    from lowrank_ldu.analysis.measures.needed import Method, NeededRank
    from lowrank_ldu.analysis.options import SurveyOptions
    from lowrank_ldu.decomposition import Pivoting

_Matrix = TypeVar("_Matrix")


@dataclass(frozen=True)
class Column(Generic[_Matrix]):
    """Hold the heading, meaning and values of a column.

    `value` gives the number for a matrix's results, and `write` its text.

    With `show`, what is written follows from the results, not from the number alone.
    """

    label: str
    definition: str
    value: Callable[[_Matrix], float | None]
    write: Callable[[float], str] = figure
    show: Callable[[_Matrix], str] | None = None

    def cell(self, matrix: _Matrix) -> Cell:
        """Return the cell of a matrix in this column."""
        value = self.value(matrix)
        if self.show is not None:
            return Cell(value, self.show(matrix))
        return Cell(value, figure(None) if value is None else self.write(value))


@dataclass(frozen=True)
class Cell:
    """Hold a number for sorting and its text."""

    sort_key: float | None
    text: str


@dataclass(frozen=True)
class Row(Generic[_Matrix]):
    """Hold the row of one matrix.

    Attributes
    ----------
    name : str
        Of the tensor.
    matrix : MatrixAnalysis or MatrixComparison
    dtype : str
    cells : list of Cell
    note : str
        What has to be said of this one, if anything.
    """

    name: str
    matrix: _Matrix
    dtype: str
    cells: list[Cell]
    note: str = ""


def cells(columns: list[Column[_Matrix]], matrix: _Matrix) -> list[Cell]:
    """Return the row of a matrix."""
    return [column.cell(matrix) for column in columns]


def columns(options: SurveyOptions, rank: int) -> list[Column[MatrixAnalysis]]:
    """Return the columns after the tensor's name, shape and dtype."""
    listed: list[Column[MatrixAnalysis]] = [
        Column(
            "recommended",
            f"What reaches a relative error of {max(options.targets):g} with the fewest numbers, and its rank: LDU "
            "with a refitted diagonal, the near-best LDU, LDU with a core, or the SVD. The weight is kept where no "
            "factors are smaller than it. The view of the matrix says more.",
            lambda matrix: advice_of(matrix).rank,
            show=lambda matrix: advice_of(matrix).short,
        ),
        Column(
            "size left",
            "Numbers of the recommended factors over those of the weight.",
            lambda matrix: advice_of(matrix).share,
            write=lambda share: f"{share:.0%}",
        ),
        *(column for error in options.targets for column in _of_target(error)),
        Column(
            "stable rank",
            "‖W‖²_F / ‖W‖²_2, from 1 to k = min(m, n).",
            lambda matrix: matrix.spectrum.stable_rank,
            show=stable_rank,
        ),
        Column(
            "effective rank",
            "exp of the entropy of the singular values scaled to sum 1, from 1 to k.",
            lambda matrix: matrix.spectrum.effective_rank,
        ),
        Column(
            "energy",
            f"Share of ‖W‖²_F that the first {rank} singular values hold.",
            lambda matrix: matrix.spectrum.energy[min(rank, matrix.m, matrix.n)],
            show=lambda matrix: energy(matrix, min(rank, matrix.m, matrix.n)),
        ),
        Column(
            "SVD error",
            "‖W - W_r‖_F / ‖W‖_F of the truncated SVD: the least that any matrix of this rank can have. Two numbers "
            "are bounds of it, the greater one the error of a randomized SVD.",
            lambda matrix: least_error(matrix, rank)[1],
            show=lambda matrix: interval(*least_error(matrix, rank)),
        ),
    ]
    if options.has_pissa:
        listed.append(
            Column(
                "PiSSA error",
                "The same for quick PiSSA: randomized SVD with 4 power iterations and no oversampling.",
                lambda matrix: matrix.at("pissa", rank).diagnostics.frobenius_error,
            )
        )
    listed.append(
        Column(
            "near-best error",
            "The same for the near-best LDU: the LDU of a matrix of this rank that is nearly the best one, from a "
            "randomized sketch with 2 power iterations.",
            lambda matrix: matrix.at("ldu_lowrank", rank).diagnostics.frobenius_error,
        )
    )
    for pivoting in options.pivoting:
        of_strategy = list(_of_strategy(pivoting, rank))
        listed += of_strategy if options.has_times else of_strategy[:-1]
    if not options.has_times:
        return listed
    listed.append(
        Column(
            "near-best time",
            "Time to compute the near-best LDU of a random matrix of this shape, by one thread, as of all times.",
            lambda matrix: matrix.at("ldu_lowrank", rank).seconds,
            duration,
        )
    )
    if options.has_pissa:
        listed.append(
            Column(
                "PiSSA time", "Time to compute quick PiSSA.", lambda matrix: matrix.at("pissa", rank).seconds, duration
            )
        )
    listed.append(
        Column(
            "SVD time",
            "Time of the exact or randomized SVD, vectors included.",
            lambda matrix: matrix.svd_seconds,
            duration,
        )
    )
    return listed


_MEANINGS: dict[Method, str] = {
    "ldu": "LDU with a refitted diagonal, of the pivoting that needs the least,",
    "ldu_lowrank": "the near-best LDU",
    "ldu_core": "the best r x r core between the factors of LDU, of the pivoting that needs the least,",
    "svd": "the truncated SVD",
}


def _of_target(error: float) -> Iterator[Column[MatrixAnalysis]]:
    def column(method: Method, definition: str) -> Column[MatrixAnalysis]:
        def of(matrix: MatrixAnalysis) -> NeededRank:
            return least_needed(matrix.needed, method, error)

        return Column(
            f"{SHORT[method]} for {error:g}",
            definition,
            lambda matrix: of(matrix).rank,
            show=lambda matrix: needed_and_saved(of(matrix), matrix),
        )

    for method, meaning in _MEANINGS.items():
        yield column(
            method,
            f"Smallest rank at which {meaning} has a relative error of at most {error:g}, and how many fewer or more "
            "numbers its factors have than the weight; > the largest rank that was looked at, ≤ before a rank where a "
            "smaller one may do, unknown where those that were looked at may do.",
        )


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
        f"{pivoting} core",
        "The same with the best r x r matrix between L and U in place of the diagonal: the least error that their "
        "columns and rows allow.",
        of("core_frobenius_error"),
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
