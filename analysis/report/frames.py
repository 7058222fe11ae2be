"""Put an analysis into pandas frames: tensors, figures, curves, targets."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import pandas as pd

from lowrank_ldu.analysis.report.frame_columns import FRAME_COLUMNS, OF_THE_MATRIX
from lowrank_ldu.analysis.report.places import places_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from lowrank_ldu.analysis.measures.matrix import MatrixAnalysis, Measurement
    from lowrank_ldu.analysis.report.frame_columns import FrameColumn, Kind
    from lowrank_ldu.analysis.result import Analysis


def analysis_frame(analysis: Analysis, name: str) -> pd.DataFrame:
    """Return a frame of an analysis.

    Parameters
    ----------
    analysis : Analysis
    name : {"tensors", "figures", "curves", "targets"}

    Returns
    -------
    pandas.DataFrame
        The columns of `frame_columns`.
    """
    return build_frame("analysis", name, _ROWS[name](analysis))


def build_frame(kind: Kind, name: str, rows: Iterable[Mapping[str, Any]]) -> pd.DataFrame:
    """Return rows as a frame of typed columns.

    Parameters
    ----------
    kind : {"analysis", "comparison", "claims"}
    name : str
        Of the frame.
    rows : iterable of mapping of str to object
        What a row lacks, and None, are missing in it.

    Returns
    -------
    pandas.DataFrame
        The columns of `frame_columns`, whose units are in `attrs["units"]`. Texts that UTF-8 has no place for, as names
        out of pickles may be, have a backslash and their number instead.
    """
    columns, rows = FRAME_COLUMNS[kind][name], list(rows)
    frame = pd.DataFrame({column.name: _series([row.get(column.name) for row in rows], column) for column in columns})
    frame.attrs["units"] = {column.name: column.unit for column in columns if column.unit}
    return frame


def _series(values: list[Any], column: FrameColumn) -> pd.Series:
    if column.dtype == "string":
        values = [None if value is None else value.encode("utf-8", "backslashreplace").decode() for value in values]
    return pd.Series(values, dtype=column.dtype)


def _tensor_rows(analysis: Analysis) -> Iterator[dict[str, Any]]:
    places = places_of(analysis)
    for tensor in analysis.results:
        place = places[tensor.name]
        yield {
            "tensor": tensor.name,
            "layer": place.layer,
            "module": place.module,
            "shape": None if tensor.shape is None else "x".join(map(str, tensor.shape)),
            "dtype": tensor.dtype,
            "analyzed": tensor.analysis is not None,
            "reason": tensor.reason,
            "seconds": tensor.seconds,
            "device": tensor.device,
            **({} if tensor.analysis is None else _summary(tensor.analysis)),
        }


def _summary(matrix: MatrixAnalysis) -> dict[str, Any]:
    spectrum, advice = matrix.spectrum, matrix.recommendation
    return {
        "m": matrix.m,
        "n": matrix.n,
        "largest_singular_value": spectrum.largest,
        "smallest_singular_value": spectrum.smallest,
        "stable_rank": spectrum.stable_rank,
        "effective_rank": spectrum.effective_rank,
        "spectral_entropy": spectrum.entropy,
        "svd_seconds": matrix.svd_seconds,
        "svd_niter": matrix.svd_niter,
        "recommended_method": advice.method or "keep",
        "recommended_rank": advice.rank,
        "recommended_pivoting": advice.pivoting,
        "recommended_storage": advice.storage,
        "recommended_numbers": advice.numbers,
        "size_left": advice.numbers / matrix.size,
        "recommendation": advice.reason,
    }


def _figure_rows(analysis: Analysis) -> Iterator[dict[str, Any]]:
    places = places_of(analysis)
    for tensor, matrix in analysis.matrices:
        place = places[tensor.name]
        shared = {
            "tensor": tensor.name,
            "layer": place.layer,
            "module": place.module,
            "svd_is_bound": matrix.svd_niter is not None,
        }
        for row in (*map(_measured, matrix.measurements), *_svd_rows(matrix)):
            yield shared | row


def method_name(measurement: Measurement) -> str:
    """Return the name of a method that frames have."""
    method = measurement.diagnostics.method
    # PiSSA alone comes in two kinds.
    return f"pissa_{'exact' if measurement.exact else 'quick'}" if method == "pissa" else method


def _measured(measurement: Measurement) -> dict[str, Any]:
    return asdict(measurement.diagnostics) | {"method": method_name(measurement), "seconds": measurement.seconds}


def _svd_rows(matrix: MatrixAnalysis) -> Iterator[dict[str, Any]]:
    """Yield the SVD's figures at each measured rank.

    They are the yardstick in the records of the other methods.
    """
    at_rank = {item.diagnostics.rank: item.diagnostics for item in matrix.measurements}
    for rank, figures in sorted(at_rank.items()):
        yield {
            **{name: getattr(figures, name) for name in OF_THE_MATRIX},
            "method": "svd",
            "rank": rank,
            "frobenius_error": figures.svd_frobenius_error,
            "spectral_error": figures.svd_spectral_error,
            "seconds": matrix.svd_seconds,
            "energy": matrix.spectrum.energy.get(rank),
            "energy_bound": matrix.spectrum.energy_bound.get(rank),
        }


def _curve_rows(analysis: Analysis) -> Iterator[dict[str, Any]]:
    for tensor, matrix in analysis.matrices:
        for pivoting, curve in matrix.curves.items():
            points = zip(matrix.curve_ranks, curve.error, curve.refit_error, curve.pivot, strict=True)
            for rank, error, refit_error, pivot in points:
                yield {
                    "tensor": tensor.name, "method": "ldu", "pivoting": pivoting, "rank": rank, "error": error,
                    "refit_error": refit_error, "pivot": pivot,
                }  # fmt: skip
        for rank, error in zip(matrix.curve_ranks, matrix.svd_curve, strict=True):
            yield {"tensor": tensor.name, "method": "svd", "rank": rank, "error": error}


def _target_rows(analysis: Analysis) -> Iterator[dict[str, Any]]:
    for tensor, matrix in analysis.matrices:
        for item in matrix.needed:
            row = asdict(item)
            saved = None if item.numbers is None else 1 - item.numbers / matrix.size
            yield {
                "tensor": tensor.name,
                "target": row.pop("error"),
                "rank_is_bound": row.pop("bound"),
                "saved": saved,
                **row,
            }


_ROWS = {"tensors": _tensor_rows, "figures": _figure_rows, "curves": _curve_rows, "targets": _target_rows}
