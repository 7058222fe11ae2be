"""Check the header of a GGUF file.

It is read to its end before the gguf library takes it apart.

The library believes what a file says of its own sizes, and makes objects for each number of each array: a file of 60
bytes can keep it busy until memory ends. It also maps files, which ends the process where one becomes shorter.
"""

from __future__ import annotations

import struct
from typing import BinaryIO

from lowrank_ldu.untrusted import read_exactly

# Bytes of a value, by the format's number of its type; for a string, of the length of its text.
_SIZES = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 8: 8, 10: 8, 11: 8, 12: 8}
_STRING, _ARRAY = 8, 9
# Vocabularies have some hundred thousand entries, in three or four arrays.
_MOST_VALUES = 2**22
_MOST_TENSORS = 2**20
_LARGEST_HEADER = 2**30
_MOST_DIMENSIONS = 8


def header_of(file: BinaryIO, size: int) -> bytes:
    """Return the bytes of a GGUF file up to its tensors' values.

    Parameters
    ----------
    file : binary file
        At its beginning.
    size : int
        Of the file, bytes.

    Raises
    ------
    ValueError
        It is no such file, or says more of itself than it can hold.
    """
    return _Walk(file, size).header()


class _Walk:
    """Walk through a header once, and keep the bytes passed."""

    def __init__(self, file: BinaryIO, size: int) -> None:
        self._file = file
        self._left = min(size, _LARGEST_HEADER)
        self._parts: list[bytes] = []
        self._values = 0
        self._order = "<"

    def header(self) -> bytes:
        """Walk to the end of the header."""
        if self._take(4) != b"GGUF":
            raise ValueError("GGUF magic invalid")
        version = self._take(4)
        if version[:2] == b"\0\0":
            self._order = ">"
        tensors, entries = self._number("Q"), self._number("Q")
        if tensors > _MOST_TENSORS:
            raise ValueError(f"said to have {tensors} tensors")
        for _ in range(self._counted(entries, 12)):
            self._text()
            self._value(self._number("I"))
        for _ in range(self._counted(tensors, 20)):
            self._text()
            dimensions = self._number("I")
            if dimensions > _MOST_DIMENSIONS:
                raise ValueError(f"a tensor is said to have {dimensions} dimensions")
            self._take(8 * dimensions + 12)
        return b"".join(self._parts)

    def _value(self, kind: int) -> None:
        if kind != _ARRAY:
            self._take(self._number("Q") if kind == _STRING else self._size_of(kind))
            return
        inner, count = self._number("I"), self._number("Q")
        if inner == _ARRAY:
            raise ValueError("an array of arrays")
        size = self._size_of(inner)
        count = self._counted(count, size)
        if inner == _STRING:
            for _ in range(count):
                self._text()
        else:
            self._take(count * size)

    def _counted(self, count: int, size: int) -> int:
        """Check that the file can hold so many values.

        Each has at least the given size, and there must not be too many in all.
        """
        self._values += count
        if count * size > self._left or self._values > _MOST_VALUES:
            raise ValueError(f"{count} values are said to follow, with {self._left} bytes left")
        return count

    @staticmethod
    def _size_of(kind: int) -> int:
        if kind not in _SIZES:
            raise ValueError(f"a value of type {kind}")
        return _SIZES[kind]

    def _text(self) -> None:
        self._take(self._number("Q"))

    def _number(self, kind: str) -> int:
        return int(struct.unpack(self._order + kind, self._take(struct.calcsize(self._order + kind)))[0])

    def _take(self, count: int) -> bytes:
        if count > self._left:
            raise ValueError(f"{count} bytes are said to follow, with {self._left} left")
        part = bytes(read_exactly(self._file, count))
        self._left -= count
        self._parts.append(part)
        return part
