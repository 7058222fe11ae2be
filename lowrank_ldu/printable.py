"""Text from files, made safe to show: names can hold anything."""

from __future__ import annotations

import re

# What spreadsheets read as the beginning of a formula, in either width.
_FORMULAS = "=+-@＝＋－＠"  # noqa: RUF001
# Where the comma is the decimal sign, spreadsheets part cells at semicolons.
_NEXT_CELL = re.compile(rf";(?=[\s\"']*[{re.escape(_FORMULAS)}])")


def printable(text: str) -> str:
    r"""Return text with what would break a line or steer a terminal escaped.

    Examples
    --------
    >>> print(printable("a\x1b[31mb\n"))
    a\x1b[31mb\n
    """
    return "".join(char if char.isprintable() else ascii(char)[1:-1] for char in text)


def cell(value: object) -> object:
    r"""Return a value for a CSV file; text that a spreadsheet would run gets an apostrophe before it.

    Numbers stay numbers. What would break a line or steer a terminal is escaped, and so is a semicolon that a formula
    follows.

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
