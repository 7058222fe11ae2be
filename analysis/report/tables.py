"""The two tables, each as CSV, where a missing figure is an empty field and an infinite one `inf`, and as Parquet."""

from __future__ import annotations

import csv
from dataclasses import asdict, fields
from typing import TYPE_CHECKING, get_type_hints

from lowrank_ldu.analysis.report.parquet import Kind, kind_of, write_parquet
from lowrank_ldu.diagnostics import Diagnostics

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from lowrank_ldu.analysis.matrix import MatrixAnalysis
    from lowrank_ldu.analysis.options import SurveyOptions
    from lowrank_ldu.analysis.run import Analysis


def write_figures(analysis: Analysis, folder: Path) -> None:
    """Write a row for each tensor, method and rank: every field of `Diagnostics`, and the seconds to factor."""
    hints = get_type_hints(Diagnostics)
    columns: dict[str, Kind] = {
        "tensor": "text",
        **{field.name: kind_of(hints[field.name]) for field in fields(Diagnostics)},
        "seconds": "real",
    }
    rows = [
        {"tensor": tensor.name, **asdict(measurement.diagnostics), "seconds": measurement.seconds}
        for tensor, matrix in analysis.matrices
        for measurement in matrix.measurements
    ]
    _write(folder, "figures", columns, rows)


def write_tensors(analysis: Analysis, folder: Path) -> None:
    """Write a row for each tensor; the timings are at `Analysis.headline_rank`."""
    options = analysis.options
    figures = [
        "largest_singular_value", "smallest_singular_value", "stable_rank", "effective_rank",
        *(f"energy_{rank}" for rank in options.ranks),
        "svd_seconds", *(f"ldu_{pivoting}_seconds" for pivoting in options.pivoting), "pissa_seconds",
    ]  # fmt: skip
    columns: dict[str, Kind] = {
        "tensor": "text", "shape": "text", "dtype": "text", "analysed": "truth", "reason": "text", "seconds": "real",
        "m": "whole", "n": "whole", **dict.fromkeys(figures, "real"),
    }  # fmt: skip
    rows = [
        {
            "tensor": tensor.name,
            "shape": None if tensor.shape is None else "x".join(map(str, tensor.shape)),
            "dtype": tensor.dtype,
            "analysed": tensor.analysis is not None,
            "reason": tensor.reason,
            "seconds": tensor.seconds,
            **({} if tensor.analysis is None else _summary(tensor.analysis, options, analysis.headline_rank)),
        }
        for tensor in analysis.tensors
    ]
    _write(folder, "tensors", columns, rows)


def _summary(matrix: MatrixAnalysis, options: SurveyOptions, headline: int) -> dict[str, object]:
    spectrum = matrix.spectrum
    return {
        "m": matrix.m,
        "n": matrix.n,
        "largest_singular_value": spectrum.largest,
        "smallest_singular_value": spectrum.smallest,
        "stable_rank": spectrum.stable_rank,
        "effective_rank": spectrum.effective_rank,
        **{f"energy_{rank}": spectrum.energy[min(rank, matrix.m, matrix.n)] for rank in options.ranks},
        "svd_seconds": matrix.svd_seconds,
        **{f"ldu_{pivoting}_seconds": matrix.at("ldu", headline, pivoting).seconds for pivoting in options.pivoting},
        "pissa_seconds": matrix.at("pissa", headline).seconds,
    }


def _write(folder: Path, name: str, columns: dict[str, Kind], rows: list[dict[str, object]]) -> None:
    write_rows(folder / f"{name}.csv", list(columns), rows)
    write_parquet(folder / f"{name}.parquet", columns, rows)


def write_rows(path: Path, columns: list[str], rows: Iterable[dict[str, object]]) -> None:
    """Write a CSV file; a column that a row lacks is an empty field."""
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, columns)
        writer.writeheader()
        writer.writerows(rows)
