"""Define the columns of a comparison's table."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lowrank_ldu.analysis.report.columns import Column

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from lowrank_ldu.analysis.comparison.matrix import MatrixComparison
    from lowrank_ldu.decomposition import Pivoting

    _Value = Callable[[MatrixComparison], float | None]


def comparison_columns(strategies: Iterable[Pivoting], rank: int) -> list[Column[MatrixComparison]]:
    """Return the columns of the page's table.

    They come after the tensor's name, shape and dtypes; `rank` is that of the partial bases.
    """

    def at(matrix: MatrixComparison) -> int:
        return min(rank, matrix.full_rank)

    listed: list[Column[MatrixComparison]] = [
        Column("relative norm", "‖update‖_F / ‖base‖_F.", lambda matrix: matrix.relative_norm),
        Column("stable rank", "‖update‖²_F / ‖update‖²_2, from 1 to k.", lambda matrix: matrix.spectrum.stable_rank),
        Column(
            "effective rank",
            "exp of the entropy of the update's singular values scaled to sum 1, from 1 to k.",
            lambda matrix: matrix.spectrum.effective_rank,
        ),
    ]
    for pivoting in strategies:
        listed += [
            Column(
                f"{pivoting}, {rank}",
                f"Share of ‖update‖²_F that the diagonal of the base's first {rank} LDU terms with {pivoting} pivoting "
                "can express at best (least squares).",
                _of_ldu(pivoting, at),
            ),
            Column(
                f"{pivoting}, full",
                f"The same with all k terms of {pivoting} pivoting.",
                _of_ldu(pivoting, lambda matrix: matrix.full_rank),
            ),
        ]
    listed += [
        Column(
            f"SVD, {rank}",
            f"The same with a diagonal between the base's first {rank} singular vectors.",
            lambda matrix: matrix.svd.explained[at(matrix)],
        ),
        Column(
            "SVD, full",
            "The same with all k singular vectors.",
            lambda matrix: matrix.svd.explained[matrix.full_rank],
        ),
        Column(
            "random, full",
            "What k terms are expected to hold of a random update: k / (m n).",
            lambda matrix: matrix.random(matrix.full_rank),
        ),
        Column(
            "LoRA, 1",
            "Share that the best matrix of rank 1 expresses; LoRA of rank 1 trains m + n numbers, the least it can.",
            lambda matrix: matrix.spectrum.energy[1],
        ),
        Column(
            f"LoRA, {rank}",
            f"The same of rank {rank}, with {rank} (m + n) numbers.",
            lambda matrix: matrix.spectrum.energy[at(matrix)],
        ),
    ]
    return listed


def _of_ldu(pivoting: Pivoting, at: Callable[[MatrixComparison], int]) -> _Value:
    return lambda matrix: matrix.ldu[pivoting].explained[at(matrix)]
