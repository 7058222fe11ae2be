"""Write the two tables, each as CSV and as Parquet.

A missing figure is an empty field or null, an infinite one `inf` or infinite. The CSV is not pyarrow's, which quotes
every text and writes `true` for `True` and `1e-7` for `1e-07`; and what a spreadsheet would run is escaped in it, but
not in Parquet.
"""

from __future__ import annotations

import csv
from dataclasses import asdict, fields
from typing import TYPE_CHECKING, Any, get_type_hints

import pyarrow as pa
from pyarrow import parquet

from lowrank_ldu.diagnostics import Diagnostics
from lowrank_ldu.formatting import cell

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from pathlib import Path

    from lowrank_ldu.analysis.checkpoint import Analysis
    from lowrank_ldu.analysis.measures.matrix import MatrixAnalysis
    from lowrank_ldu.analysis.options import SurveyOptions
    from lowrank_ldu.decomposition import Pivoting

_TYPES: dict[Any, Any] = {str: pa.string(), int: pa.int64(), float: pa.float64(), bool: pa.bool_()}
_TYPES |= {held | None: stored for held, stored in _TYPES.items()}


def write_figure_table(analysis: Analysis, folder: Path) -> None:
    """Write a row for each tensor, method and rank.

    `Diagnostics`, the seconds to factor, and the kind of PiSSA.
    """
    hints = get_type_hints(Diagnostics)
    columns: dict[str, Any] = {
        "tensor": str,
        **{field.name: hints[field.name] for field in fields(Diagnostics)},
        "seconds": float,
        "exact": bool,
    }
    rows = [
        {
            "tensor": tensor.name,
            **asdict(measurement.diagnostics),
            "seconds": measurement.seconds,
            # PiSSA alone comes in two kinds.
            "exact": measurement.exact if measurement.diagnostics.method == "pissa" else None,
        }
        for tensor, matrix in analysis.matrices
        for measurement in matrix.measurements
    ]
    _write(folder, "figures", columns, rows)


def write_tensor_table(analysis: Analysis, folder: Path) -> None:
    """Write a row for each tensor.

    The timings are at `Analysis.headline_rank`.

    A rank for a target error that is missing was not reached in the ranks that were looked at.
    """
    options = analysis.options
    figures = [
        "largest_singular_value", "smallest_singular_value", "stable_rank", "effective_rank", "spectral_entropy",
        *(f"{name}_{rank}" for rank in options.ranks for name in ("energy", "energy_bound")),
        "svd_seconds", *(f"ldu_{pivoting}_seconds" for pivoting in options.pivoting), "pissa_seconds",
        "ldu_lowrank_seconds",
    ]  # fmt: skip
    columns: dict[str, Any] = {
        "tensor": str, "shape": str, "dtype": str, "analyzed": bool, "reason": str, "seconds": float,
        "m": int, "n": int, **dict.fromkeys(figures, float), "svd_niter": int,
        **dict.fromkeys(_needed_columns(options), int),
        "recommended_rank": int, "recommended_pivoting": str,
        "recommended_storage": str, "recommendation_pays": bool, "recommendation": str,
    }  # fmt: skip
    rows = [
        {
            "tensor": tensor.name,
            "shape": None if tensor.shape is None else "x".join(map(str, tensor.shape)),
            "dtype": tensor.dtype,
            "analyzed": tensor.analysis is not None,
            "reason": tensor.reason,
            "seconds": tensor.seconds,
            **({} if tensor.analysis is None else _summary(tensor.analysis, options, analysis.headline_rank)),
        }
        for tensor in analysis.tensors
    ]
    _write(folder, "tensors", columns, rows)


def _summary(matrix: MatrixAnalysis, options: SurveyOptions, headline: int) -> dict[str, object]:
    spectrum, advice = matrix.spectrum, matrix.recommendation
    return {
        "m": matrix.m,
        "n": matrix.n,
        "largest_singular_value": spectrum.largest,
        "smallest_singular_value": spectrum.smallest,
        "stable_rank": spectrum.stable_rank,
        "effective_rank": spectrum.effective_rank,
        "spectral_entropy": spectrum.entropy,
        **{f"energy_{rank}": spectrum.energy[min(rank, matrix.m, matrix.n)] for rank in options.ranks},
        **{f"energy_bound_{rank}": spectrum.energy_bound[min(rank, matrix.m, matrix.n)] for rank in options.ranks},
        "svd_seconds": matrix.svd_seconds,
        **{f"ldu_{pivoting}_seconds": matrix.at("ldu", headline, pivoting).seconds for pivoting in options.pivoting},
        "pissa_seconds": matrix.at("pissa", headline).seconds,
        "ldu_lowrank_seconds": matrix.at("ldu_lowrank", headline).seconds,
        "svd_niter": matrix.svd_niter,
        **{_needed_column(item.pivoting, item.error, refit=item.refit): item.rank for item in matrix.needed},
        "recommended_rank": advice.rank,
        "recommended_pivoting": advice.pivoting,
        "recommended_storage": advice.storage,
        "recommendation_pays": advice.pays,
        "recommendation": advice.reason,
    }


def _needed_columns(options: SurveyOptions) -> list[str]:
    methods: list[tuple[Pivoting | None, bool]] = [(None, False)]
    methods += [(pivoting, refit) for pivoting in options.pivoting for refit in (False, True)]
    return [_needed_column(pivoting, error, refit=refit) for pivoting, refit in methods for error in options.targets]


def _needed_column(pivoting: Pivoting | None, error: float, *, refit: bool) -> str:
    method = "svd" if pivoting is None else f"ldu_{pivoting}{'_refit' if refit else ''}"
    return f"{method}_rank_for_{error:g}"


def _write(folder: Path, name: str, columns: Mapping[str, Any], rows: list[dict[str, object]]) -> None:
    """Write rows as CSV and as Parquet.

    A column that a row lacks is missing there.
    """
    write_csv(folder / f"{name}.csv", list(columns), rows)
    schema = pa.schema([(column, _TYPES[held]) for column, held in columns.items()])
    table = pa.table({column: [_storable(row.get(column)) for row in rows] for column in columns}, schema=schema)
    # The library takes paths for UTF-8, so it gets an open file.
    with (folder / f"{name}.parquet").open("wb") as file:
        parquet.write_table(table, file)


def _storable(value: object) -> object:
    # A name out of a pickle may hold half of a surrogate pair, which UTF-8 has no place for.
    return value.encode("utf-8", "backslashreplace").decode() if isinstance(value, str) else value


def write_csv(path: Path, columns: list[str], rows: Iterable[dict[str, object]]) -> None:
    """Write rows as CSV that a spreadsheet cannot run.

    A column that a row lacks is an empty field.
    """
    with path.open("w", encoding="utf-8", errors="backslashreplace", newline="") as file:
        writer = csv.DictWriter(file, columns)
        writer.writeheader()
        writer.writerows({name: cell(value) for name, value in row.items()} for row in rows)
