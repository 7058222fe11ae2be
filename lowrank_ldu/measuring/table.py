"""Read and write the rows of a measurement as CSV."""

from __future__ import annotations

import csv
import io
from dataclasses import asdict, dataclass, fields
from typing import TYPE_CHECKING

from lowrank_ldu.errors import UserError
from lowrank_ldu.formatting import cell

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path


@dataclass(frozen=True)
class Row:
    """Hold the figures of one method on one layer.

    Attributes
    ----------
    method, plan, mode : str
        plan is this package's, as it was asked for; `chosen` what "auto" came to.
    m, n, tokens, rank : int
    dtype, device, device_name : str
    threads : int
        Of torch, on the CPU.
    p20_ms, p50_ms, p80_ms, ratio : float
        Percentiles over the rounds, and p50 over that of the frozen layer.
    peak_bytes, saved_bytes : int
        Memory above what was there before the step; what autograd keeps for the backward pass (0 in mode forward).
    rounds : int
    neighbors : int
        Other processes that were kept busy meanwhile.
    torch, triton, lowrank_ldu, date : str
        Versions, and when it was.
    """

    method: str
    plan: str
    chosen: str
    mode: str
    m: int
    n: int
    tokens: int
    rank: int
    dtype: str
    device: str
    device_name: str
    threads: int
    p20_ms: float
    p50_ms: float
    p80_ms: float
    ratio: float
    peak_bytes: int
    saved_bytes: int
    rounds: int
    neighbors: int
    torch: str
    triton: str
    lowrank_ldu: str
    date: str

    @property
    def label(self) -> str:
        """Method and plan in words."""
        if not self.plan or "batch" in self.method:
            return self.method
        return f"{self.method}, {self.plan}" + (f" ({self.chosen})" if self.plan == "auto" else "")


# Which tables of earlier versions lack, with what that means.
_LATER = {"neighbors": "0"}
COLUMNS = tuple(field.name for field in fields(Row))
_TYPES = {"int": int, "float": float, "str": str}


def write_rows(rows: Sequence[Row], path: Path) -> None:
    """Write rows as CSV.

    Measured figures are rounded to what they are worth.
    """
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
    writer.writeheader()
    for row in rows:
        values = asdict(row)
        writer.writerow(
            {key: f"{value:.5g}" if isinstance(value, float) else cell(value) for key, value in values.items()}
        )
    path.write_text(text.getvalue(), encoding="utf-8")


def read_rows(path: Path) -> list[Row]:
    """Read the rows that `write_rows` wrote.

    Raises
    ------
    ValueError
        The file is no table of this kind; the message says what is wrong.
    """
    try:
        with path.open(encoding="utf-8", newline="") as file:
            reader = csv.DictReader(file)
            names = tuple(reader.fieldnames or ())
            if names not in {COLUMNS, tuple(name for name in COLUMNS if name not in _LATER)}:
                raise UserError(f"{path}: its columns are not those of this version; accepted: {', '.join(COLUMNS)}")
            lacking = {name: value for name, value in _LATER.items() if name not in names}
            return [_row(line, lacking) for line in reader]
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from error
    except (_DamagedError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{path}: is no table of measurements ({error})") from error


def _row(line: dict[str, str], lacking: dict[str, str]) -> Row:
    try:
        # A line that is too short or too long has values or names of None.
        if None in line or None in line.values():
            raise _DamagedError(f"a line of other than {len(COLUMNS) - len(lacking)} values")
        values = line | lacking
        return Row(**{field.name: _TYPES[str(field.type)](values[field.name]) for field in fields(Row)})
    except ValueError as error:
        raise _DamagedError(str(error)) from error


class _DamagedError(Exception):
    """A line is no row."""
