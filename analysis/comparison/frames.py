"""Put a comparison into pandas frames: tensors and figures."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from lowrank_ldu.analysis.report.frames import build_frame
from lowrank_ldu.analysis.report.places import places_of

if TYPE_CHECKING:
    from collections.abc import Iterator

    import pandas as pd

    from lowrank_ldu.analysis.comparison.matrix import MatrixComparison
    from lowrank_ldu.analysis.comparison.result import CheckpointComparison


def comparison_frame(comparison: CheckpointComparison, name: str) -> pd.DataFrame:
    """Return a frame of a comparison.

    Parameters
    ----------
    comparison : CheckpointComparison
    name : {"tensors", "figures"}

    Returns
    -------
    pandas.DataFrame
        The columns of `frame_columns`.
    """
    rows = _tensor_rows(comparison) if name == "tensors" else _figure_rows(comparison)
    return build_frame("comparison", name, rows)


def _tensor_rows(comparison: CheckpointComparison) -> Iterator[dict[str, Any]]:
    places = places_of(comparison)
    for tensor in comparison.results:
        place = places[tensor.name]
        yield {
            "tensor": tensor.name,
            "layer": place.layer,
            "module": place.module,
            "status": tensor.status,
            "reason": tensor.reason,
            "base_shape": _shape(tensor.base_shape),
            "tuned_shape": _shape(tensor.tuned_shape),
            "base_dtype": tensor.base_dtype or None,
            "tuned_dtype": tensor.tuned_dtype or None,
            "device": tensor.device,
            **({} if tensor.comparison is None else _summary(tensor.comparison)),
        }


def _shape(shape: tuple[int, ...] | None) -> str | None:
    return None if shape is None else "x".join(map(str, shape))


def _summary(matrix: MatrixComparison) -> dict[str, Any]:
    return {
        "m": matrix.m,
        "n": matrix.n,
        "base_norm": matrix.base_norm,
        "update_norm": matrix.update_norm,
        "relative_norm": matrix.relative_norm,
        "stable_rank": matrix.spectrum.stable_rank,
        "effective_rank": matrix.spectrum.effective_rank,
        "largest_singular_value": matrix.spectrum.largest,
    }


def _figure_rows(comparison: CheckpointComparison) -> Iterator[dict[str, Any]]:
    places = places_of(comparison)
    for tensor, matrix in comparison.matrices:
        place = places[tensor.name]
        for row in _rows(matrix):
            yield {"tensor": tensor.name, "layer": place.layer, "module": place.module, **row}


def _rows(matrix: MatrixComparison) -> Iterator[dict[str, Any]]:
    spaces = [("ldu", pivoting, terms) for pivoting, terms in matrix.ldu.items()]
    for method, pivoting, terms in (*spaces, ("svd_basis", None, matrix.svd)):
        for rank, explained in terms.explained.items():
            yield {
                "method": method,
                "pivoting": pivoting,
                "rank": rank,
                "explained": explained,
                "random_expected": matrix.random(terms.independent[rank]),
                "independent_terms": terms.independent[rank],
                "trained_numbers": rank + 1,
            }
    for rank, explained in matrix.spectrum.energy.items():
        yield {
            "method": "lora",
            "rank": rank,
            "explained": explained,
            "trained_numbers": rank * matrix.least_lora,
        }
