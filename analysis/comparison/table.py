"""The CSV table: a row for each matrix that was changed, pivoting and rank."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lowrank_ldu.analysis.report.tables import write_rows

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from lowrank_ldu.analysis.comparison.matrix import MatrixComparison
    from lowrank_ldu.analysis.comparison.pairs import PairResult
    from lowrank_ldu.analysis.comparison.run import CheckpointComparison

COLUMNS = (
    "tensor", "shape", "m", "n", "base_dtype", "tuned_dtype",
    "base_norm", "update_norm", "relative_norm", "stable_rank", "effective_rank", "largest_singular_value",
    "pivoting", "rank", "independent_terms",
    "ldu_explained", "random_expected", "svd_basis_explained", "lora_explained", "lora_rank_1_explained",
    "ldu_numbers", "lora_numbers", "lora_rank_1_numbers", "lora_rank_at_equal_numbers",
)  # fmt: skip


def write_table(comparison: CheckpointComparison, path: Path) -> None:
    """Write the table; names of tensors are as the checkpoints have them."""
    rows = (row for tensor, matrix in comparison.matrices for row in _rows(tensor, matrix))
    write_rows(path, list(COLUMNS), rows)


def _rows(tensor: PairResult, matrix: MatrixComparison) -> Iterator[dict[str, object]]:
    shared = {
        "tensor": tensor.name,
        "shape": "x".join(map(str, tensor.base_shape or ())),
        "m": matrix.m,
        "n": matrix.n,
        "base_dtype": tensor.base_dtype,
        "tuned_dtype": tensor.tuned_dtype,
        "base_norm": matrix.base_norm,
        "update_norm": matrix.update_norm,
        "relative_norm": matrix.relative_norm,
        "stable_rank": matrix.spectrum.stable_rank,
        "effective_rank": matrix.spectrum.effective_rank,
        "largest_singular_value": matrix.spectrum.largest,
        "lora_rank_1_explained": matrix.spectrum.energy[1],
        "lora_rank_1_numbers": matrix.least_lora,
    }
    for pivoting, terms in matrix.ldu.items():
        for rank, explained in terms.explained.items():
            yield {
                **shared,
                "pivoting": pivoting,
                "rank": rank,
                "independent_terms": terms.independent[rank],
                "ldu_explained": explained,
                "random_expected": matrix.random(terms.independent[rank]),
                "svd_basis_explained": matrix.svd.explained[rank],
                "lora_explained": matrix.spectrum.energy[rank],
                "ldu_numbers": rank + 1,
                "lora_numbers": rank * matrix.least_lora,
                "lora_rank_at_equal_numbers": (rank + 1) / matrix.least_lora,
            }
