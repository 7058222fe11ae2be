"""Names from files, made safe to show: they can hold anything."""

from __future__ import annotations


def printable(text: str) -> str:
    r"""Return text with what would break a line or steer a terminal escaped.

    Examples
    --------
    >>> print(printable("a\x1b[31mb\n"))
    a\x1b[31mb\n
    """
    return "".join(char if char.isprintable() else ascii(char)[1:-1] for char in text)
