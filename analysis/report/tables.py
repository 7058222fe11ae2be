"""Write the frames of an analysis, each as CSV and as Parquet.

A missing value is an empty field or null, an infinite one `inf` or infinite. The CSV is not pandas', which has no place
for an escape: what a spreadsheet would run is escaped in it, but not in Parquet.
"""

from __future__ import annotations

import csv
from typing import TYPE_CHECKING

from lowrank_ldu.analysis.report.frame_columns import FRAME_COLUMNS
from lowrank_ldu.formatting import cell

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    import pandas as pd

    from lowrank_ldu.analysis.result import Analysis


def write_tables(analysis: Analysis, folder: Path) -> None:
    """Write each frame of an analysis as CSV and as Parquet."""
    for name in FRAME_COLUMNS["analysis"]:
        write_frame(getattr(analysis, name), folder, name)


def write_frame(frame: pd.DataFrame, folder: Path, name: str) -> None:
    """Write a frame as CSV and as Parquet.

    Parquet keeps the dtypes, and `attrs`.
    """
    values = {column: frame[column].astype(object).where(frame[column].notna(), None).tolist() for column in frame}
    rows = (dict(zip(values, row, strict=True)) for row in zip(*values.values(), strict=True))
    write_csv(folder / f"{name}.csv", list(values), rows)
    # The library takes paths for UTF-8, so it gets an open file.
    with (folder / f"{name}.parquet").open("wb") as file:
        frame.to_parquet(file, engine="pyarrow", index=False)


def write_csv(path: Path, columns: list[str], rows: Iterable[dict[str, object]]) -> None:
    """Write rows as CSV that a spreadsheet cannot run.

    A column that a row lacks is an empty field.
    """
    with path.open("w", encoding="utf-8", errors="backslashreplace", newline="") as file:
        writer = csv.DictWriter(file, columns)
        writer.writeheader()
        writer.writerows({name: cell(value) for name, value in row.items()} for row in rows)
