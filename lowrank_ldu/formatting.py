"""Format figures and names as people read them."""

from __future__ import annotations

import math
import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

# What spreadsheets read as the beginning of a formula, in either width.
_FORMULAS = "=+-@＝＋－＠"  # noqa: RUF001
# Where the comma is the decimal sign, spreadsheets part cells at semicolons.
_NEXT_CELL = re.compile(rf";(?=[\s\"']*[{re.escape(_FORMULAS)}])")


def printable(text: str) -> str:
    r"""Return text that breaks no line and steers no terminal.

    What would do so is escaped.

    Examples
    --------
    >>> print(printable("a\x1b[31mb\n"))
    a\x1b[31mb\n
    """
    return "".join(char if char.isprintable() else ascii(char)[1:-1] for char in text)


def cell(value: object) -> object:
    r"""Return a value for a cell of a CSV file.

    Text that a spreadsheet would run gets an apostrophe before it. Numbers stay numbers. What would break a line or
    steer a terminal is escaped, and so is a semicolon that a formula follows.

    Examples
    --------
    >>> print(cell("a;=1"))
    a\x3b=1
    >>> cell("=HYPERLINK(A1)"), cell("\tlayer.0\n"), cell(-1.5)
    ("'=HYPERLINK(A1)", '\\tlayer.0\\n', -1.5)
    """
    if not isinstance(value, str):
        return value
    text = _NEXT_CELL.sub(r"\\x3b", printable(value))
    return f"'{text}" if value.strip().startswith(tuple(_FORMULAS)) else text


def figure(value: float | None) -> str:
    """Return three significant digits; a hyphen for a missing figure.

    Examples
    --------
    >>> [figure(x) for x in (0.65432, 12345.6, 2e-7, math.inf, None, 38)]
    ['0.654', '12,300', '2e-07', '∞', '-', '38']
    """
    if value is None or math.isnan(value):
        return "-"
    if math.isinf(value):
        return "∞" if value > 0 else "-∞"
    if isinstance(value, int):
        return f"{value:,}"
    if value != 0 and not 1e-3 <= abs(value) < 1e6:
        return f"{value:.3g}"
    digits = 2 - math.floor(math.log10(abs(value))) if value else 0
    return f"{round(value, digits):,.{max(digits, 0)}f}"


def interval(low: float, high: float) -> str:
    """Return two bounds as people read them.

    One figure, if they read the same.

    Examples
    --------
    >>> interval(0.6, 0.6), interval(0.61, 0.642)
    ('0.600', '0.610 to 0.642')
    """
    ends = figure(low), figure(high)
    return ends[0] if ends[0] == ends[1] else " to ".join(ends)


def aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    """Return rows of cells as lines of columns.

    Examples
    --------
    >>> aligned([("layer", "rank"), ("0.query", "8")])
    ['layer    rank', '0.query  8']
    """
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)).rstrip() for row in rows]


def duration(seconds: float | None) -> str:
    """Return seconds with a unit that suits them; a hyphen for none.

    Examples
    --------
    >>> [duration(x) for x in (0.00042, 0.051, 12.3, 754.0)]
    ['420 µs', '51.0 ms', '12.3 s', '12 min 34 s']
    """
    if seconds is None:
        return figure(None)
    if seconds < 1e-3:
        return f"{figure(seconds * 1e6)} µs"
    if seconds < 1:
        return f"{figure(seconds * 1e3)} ms"
    if seconds < 100:
        return f"{figure(seconds)} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s"
