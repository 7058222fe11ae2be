"""Read files of strangers in bounded memory.

They may be damaged, or made to do damage. What is wrong is an error of Python's own, without the file's name: callers
turn it into theirs.
"""

from __future__ import annotations

import errno
import json
import math
import os
import re
import stat
from collections import Counter
from typing import IO, TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    import zipfile
    from collections.abc import Iterator
    from pathlib import Path

_PART = 16 * 2**20
# A range that is larger and less than half of it on disk was not written whole.
_SPARSE_FROM = 2**30
# Of the parts of a file between holes, which a file may have millions of.
_MOST_PARTS = 10_000
# Bytes of the number before the header: https://huggingface.co/docs/safetensors.
LENGTH_BYTES = 8
_MOST_INFLATED = 20
_FEW_BYTES = 2**24
# Of JSON's text: the first half of a pair, and either half alone.
_ESCAPED_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")


class Limit(NamedTuple):
    """Bound how much JSON is read.

    Python's objects take up to thirty times the bytes of the text.

    Attributes
    ----------
    size : int
        Bytes.
    values : int
        Numbers, texts, lists and objects, as commas and opening brackets count them.
    """

    size: int
    values: int


# Models' configurations have some kilobytes.
CONFIGURATION = Limit(2**24, 2**20)
# Half a million tensors, or a hundred thousand layers, take less than half of this.
LISTING = Limit(2**27, 2**21)
# The safetensors library takes headers of up to 100 MB; half a million matrices are in this.
HEADER = Limit(2**27, 2**22)


class ShortFileError(ValueError):
    """Say that a file ends too early."""


def check_regular(path: Path) -> None:
    """Refuse what cannot be read to an end.

    Raises
    ------
    ValueError
        It is a pipe, a device or a folder, or a large file that is holes for the most part.
    OSError
        There is no such file, or it cannot be looked up.
    """
    state = path.stat()
    if not stat.S_ISREG(state.st_mode):
        raise ValueError("is no regular file")
    if state.st_size > _SPARSE_FROM:
        with open_regular(path) as file:
            check_written(file, 0, state.st_size)


def open_regular(path: Path) -> IO[bytes]:
    """Open a file to read its bytes.

    A pipe that has taken its place is not waited for.
    """
    return open(path, "rb", opener=_without_waiting)


def check_written(file: IO[bytes], start: int, size: int) -> None:
    """Refuse a large range that is mostly holes.

    Where the file system does not tell holes nothing is refused: how much room a file takes says little, since it may
    be compressed, small enough to lie beside its name, or on another machine.

    Raises
    ------
    ValueError
        Less than half of it was written.
    """
    size = min(size, os.fstat(file.fileno()).st_size - start)
    if size > _SPARSE_FROM and _written(file.fileno(), start, start + size) < size // 2:
        raise ValueError(f"{size} bytes that are mostly holes")


def check_inflated(archive: zipfile.ZipFile, size: int) -> None:
    """Refuse an archive whose members might fill the memory.

    They are read at once. Weights do not compress so well. A few megabytes are let pass, since small tensors of zeros
    do.

    Raises
    ------
    ValueError
        It is said to hold far more than its size, bytes, makes likely.
    """
    inflated = sum(member.file_size for member in archive.infolist())
    if inflated > _MOST_INFLATED * size + _FEW_BYTES:
        raise ValueError(
            f"said to hold {inflated} bytes in a file of {size}; accepted: up to {_MOST_INFLATED} times that"
        )


def read_exactly(stream: IO[bytes], size: int) -> bytearray:
    """Read so many bytes, taking memory as they come.

    Raises
    ------
    ShortFileError
        There are fewer.
    """
    content = bytearray()
    for part in _parts(stream, size):
        content += part
    return content


def read_range(path: Path, start: int, size: int) -> bytearray:
    """Read a range of a file, without mapping it.

    A file that becomes shorter is an error.

    Raises
    ------
    ShortFileError
        The file ends before the range does.
    ValueError
        The range is large and mostly holes.
    OSError
        The file cannot be read.
    """
    with open_regular(path) as file:
        left = os.fstat(file.fileno()).st_size - start
        if left >= size:
            check_written(file, start, size)
            content = bytearray(size)
            file.seek(start)
            left = file.readinto(content)  # type: ignore[attr-defined]  # a buffered reader's
            if left == size:
                return content
    raise _short(size, max(left, 0))


def range_parts(path: Path, start: int, size: int) -> Iterator[bytes]:
    """Yield a range of a file part by part.

    Raises what `read_range` does.
    """
    with open_regular(path) as file:
        check_written(file, start, size)
        file.seek(start)
        yield from _parts(file, size)


def read_json(path: Path, limit: Limit, *, lenient: bool = False, surrogates: bool = False) -> Any:
    """Return the value that a JSON file holds.

    Raises `OSError`, and what `strict_json` does.
    """
    return strict_json(read_text(path, limit), limit, lenient=lenient, surrogates=surrogates)


def read_text(path: Path, limit: Limit) -> bytes:
    """Read a file of JSON to its end.

    Of a longer file one byte more than the limit is read, which `strict_json` refuses.
    """
    content = bytearray()
    with open_regular(path) as file:
        # In parts: memory is taken as they come.
        while part := file.read(min(limit.size + 1 - len(content), _PART)):
            content += part
    return bytes(content)


def strict_json(text: bytes | bytearray, limit: Limit, *, lenient: bool = False, surrogates: bool = False) -> Any:
    """Return the one value of a JSON text, within limits.

    Parameters
    ----------
    text : bytes
        UTF-8.
    limit : Limit
    lenient : bool
        Take what transformers takes in the files that it writes and people edit: of several equal keys the last one,
        and numbers that are not finite.
    surrogates : bool
        Take halves of surrogate pairs, as names out of pickles have them.

    Raises
    ------
    ValueError
        It is larger than the limit, or no JSON; or it has equal keys, a number that is not finite, half a surrogate
        pair, or objects in objects that are deeper than Python goes.

    Examples
    --------
    >>> strict_json(b'{"a": [1, 2.5]}', CONFIGURATION)
    {'a': [1, 2.5]}
    >>> strict_json(b'{"a": 1, "a": 2}', CONFIGURATION)
    Traceback (most recent call last):
    ValueError: the key 'a' is there twice
    """
    if len(text) > limit.size:
        raise ValueError(f"larger than {limit.size} bytes")
    if sum(map(text.count, (b",", b"[", b"{"))) > limit.values:
        raise ValueError(f"more than {limit.values} values")
    decoded = text.decode("utf-8-sig")
    try:
        value = (json.JSONDecoder() if lenient else _STRICT).decode(decoded)
        if not lenient and not surrogates and _ESCAPED_SURROGATE.search(decoded):
            # Text with half a pair can be neither printed nor written.
            json.dumps(value, ensure_ascii=False).encode()
    except RecursionError as error:
        raise ValueError("objects or lists are too deep in others") from error
    return value


def safetensors_header(path: Path) -> tuple[dict[str, Any], int]:
    """Return a safetensors file's header, and where values begin.

    The library has checked the file.

    Raises
    ------
    ValueError
        It is no such file any more, or has a key twice, of which the library takes the last one.
    OSError
        It cannot be read.
    """
    with open_regular(path) as file:
        length = header_length(read_exactly(file, LENGTH_BYTES))
        header = strict_json(read_exactly(file, length), HEADER)
    if not isinstance(header, dict):
        raise ValueError("header is no object")  # noqa: TRY004  # what the file holds, not what was passed
    return header, LENGTH_BYTES + length


def header_length(first: bytes | bytearray) -> int:
    """Return the length of a safetensors header, by the file's first bytes.

    Raises `ValueError` if it is longer than any that is read.
    """
    length = int.from_bytes(first, "little")
    if length > HEADER.size:
        raise ValueError(f"header larger than {HEADER.size} bytes")
    return length


def _parts(stream: IO[bytes], size: int) -> Iterator[bytes]:
    left = size
    while left:
        part = stream.read(min(left, _PART))
        if not part:
            raise _short(size, size - left)
        left -= len(part)
        yield part


def _short(size: int, left: int) -> ShortFileError:
    return ShortFileError(f"has {size} bytes, of which {left} are left in the file")


def _written(descriptor: int, start: int, end: int) -> int:
    """Return how many bytes of a range were written.

    Those that are not in holes; all of them where that cannot be told.
    """
    if not hasattr(os, "SEEK_DATA"):
        return end - start
    written, place = 0, start
    before = os.lseek(descriptor, 0, os.SEEK_CUR)
    try:
        for _ in range(_MOST_PARTS):
            place = os.lseek(descriptor, place, os.SEEK_DATA)
            if place >= end:
                return written
            hole = min(os.lseek(descriptor, place, os.SEEK_HOLE), end)
            written, place = written + hole - place, hole
            if place == end:
                return written
    except OSError as error:
        # Behind the last data there is none; anything else means that the file system does not tell.
        return written if error.errno == errno.ENXIO else end - start
    finally:
        os.lseek(descriptor, before, os.SEEK_SET)  # which the file's buffer counts on
    return end - start


def _without_waiting(path: str, flags: int) -> int:
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0))


def _with_single_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        twice = next(key for key, count in Counter(key for key, _ in pairs).items() if count > 1)
        raise ValueError(f"the key {twice[:100]!r} is there twice")
    return found


def _finite(number: str) -> float:
    value = float(number)
    if not math.isfinite(value):
        raise ValueError(f"{number[:100]} is no finite number")
    return value


_STRICT = json.JSONDecoder(object_pairs_hook=_with_single_keys, parse_constant=_finite, parse_float=_finite)
