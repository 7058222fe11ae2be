"""Read a file of numpy arrays.

``.npy`` holds one array, ``.npz`` is an archive of them.
"""

from __future__ import annotations

import io
import math
import tokenize
import warnings
import zipfile
import zlib
from typing import IO, TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from numpy.lib import format as npy

from lowrank_ldu.checkpoints.reader import CheckpointReader, TensorInfo, Unread
from lowrank_ldu.checkpoints.safe_reading import LIBRARY_ERRORS, empty_tensor, reason_of, refused_as, stored_range
from lowrank_ldu.errors import CheckpointError
from lowrank_ldu.untrusted import check_written, open_regular, read_exactly

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

# Encrypted members raise RuntimeError.
_ERRORS = (*LIBRARY_ERRORS, SyntaxError, tokenize.TokenError, zipfile.BadZipFile, zlib.error)
# numpy itself takes headers of up to 10,000 characters, but reads them first, however long they say that they are.
_LONGEST_HEADER = 2**16
# Ratio of inflated to compressed bytes: deflate reaches 1,032.
_MOST_INFLATED = 1100
_HEADERS = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}


class _Array(NamedTuple):
    """Hold where an array is: `member` is empty in a ``.npy`` file."""

    member: str
    dtype: np.dtype
    fortran: bool
    start: int


class NumpyReader(CheckpointReader):
    """Reader of one ``.npy`` or ``.npz`` file.

    Only headers are read until an array is loaded, and no pickle ever is.

    An array of a ``.npy`` file is called by the file's name without its suffix.

    Parameters
    ----------
    path : pathlib.Path
        The file.

    Raises
    ------
    CheckpointError
        If the file is missing or damaged, or if an array is larger than the file says that it can be.
    """

    path: Path

    def __init__(self, path: Path) -> None:
        self._arrays: dict[str, _Array] = {}
        found: dict[str, TensorInfo | str] = {}
        with refused_as(path, "numpy file", _ERRORS), warnings.catch_warnings():
            # Python warns of headers that it reads as code or that Python 2 wrote; the error says it once.
            warnings.simplefilter("ignore")
            # A file of another name was told by these bytes.
            single = path.suffix.lower() == ".npy" or (path.suffix.lower() != ".npz" and not zipfile.is_zipfile(path))
            for name, what in self._list_file(path) if single else self._list_archive(path):
                found[name] = Unread("array whose name two members have") if name in found else what
        super().__init__(
            path,
            (what for what in found.values() if isinstance(what, TensorInfo)),
            {name: what for name, what in found.items() if isinstance(what, str)},
        )

    def _list_file(self, path: Path) -> Iterator[tuple[str, TensorInfo | str]]:
        with path.open("rb") as stream:
            yield path.stem, self._header(path, path.stem, "", stream, path.stat().st_size)

    def _list_archive(self, path: Path) -> Iterator[tuple[str, TensorInfo | str]]:
        with zipfile.ZipFile(path) as archive:
            for member in archive.infolist():
                name = member.filename.removesuffix(".npy")
                if name == member.filename:
                    yield name, "not an array"
                elif member.file_size > _MOST_INFLATED * max(member.compress_size, 1):
                    size, compressed = member.file_size, member.compress_size
                    yield name, Unread(f"said to have {size} bytes, of {compressed} compressed ones")
                else:
                    yield name, self._member(path, name, archive, member)

    def _member(self, path: Path, name: str, archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> TensorInfo | str:
        """Return the tensor of an archive's member, or the obstacle.

        A damaged member takes no other with it.
        """
        try:
            with archive.open(member) as stream:
                return self._header(path, name, member.filename, stream, member.file_size)
        except _ERRORS as error:
            return Unread(f"array that cannot be read ({reason_of(error)})")

    def _header(self, path: Path, name: str, member: str, stream: IO[bytes], size: int) -> TensorInfo | str:
        """Read an array's header, or return the obstacle.

        The obstacle is a text: why the array cannot be loaded.
        """
        head = io.BytesIO(stream.read(_LONGEST_HEADER))
        read_header = _HEADERS.get(npy.read_magic(head))
        if read_header is None:
            return Unread("of a version of the format that is not known")
        shape, fortran, dtype = read_header(head)
        start = head.tell()
        kind = torch_name(dtype)
        if kind is None or dtype.subdtype is not None:
            # If a type holds arrays, numpy gives another shape than the written one.
            return of_dtype(dtype, "array")
        if any(size < 0 for size in shape):
            raise ValueError(f"{name!r} is said to have the shape {shape}, with negative sizes")
        nbytes = math.prod(shape) * dtype.itemsize
        if nbytes != size - start:
            raise ValueError(f"{name!r} is said to have {nbytes} bytes, and has {size - start}")
        self._arrays[name] = _Array(member, dtype, fortran, start)
        return TensorInfo(name, tuple(shape), kind, str(path), nbytes)

    def _read(self, info: TensorInfo) -> torch.Tensor:
        array = self._arrays[info.name]
        if info.nbytes == 0:
            return empty_tensor(self.path, info.name, info.shape, getattr(torch, info.dtype))
        values: bytearray | memoryview
        if array.member:
            values = self._unpacked(info, array)
        else:
            values = stored_range(self.path, info.name, array.start, info.nbytes)
        flat = np.frombuffer(values, array.dtype).astype(array.dtype.newbyteorder("="))
        return torch.from_numpy(flat.reshape(info.shape, order="F" if array.fortran else "C"))

    def _unpacked(self, info: TensorInfo, array: _Array) -> bytearray:
        try:
            with (
                open_regular(self.path) as file,
                zipfile.ZipFile(file) as archive,
                archive.open(array.member) as stream,
            ):
                member = archive.getinfo(array.member)
                check_written(file, member.header_offset, member.compress_size)
                read_exactly(stream, array.start)
                return read_exactly(stream, info.nbytes)
        except _ERRORS as error:
            raise CheckpointError(f"{self.path}: array {info.name!r} cannot be read ({reason_of(error)})") from error


def of_dtype(dtype: np.dtype, what: str) -> str:
    """Describe an array or dataset whose dtype torch has not."""
    text = f"{dtype} {what}"
    return Unread(text) if dtype.kind in "fcO" else text


def torch_name(dtype: np.dtype) -> str | None:
    """Return torch's name of a numpy dtype.

    None where torch has no such tensors.

    Examples
    --------
    >>> torch_name(np.dtype(">f4")), torch_name(np.dtype("U3"))
    ('float32', None)
    """
    try:
        return str(torch.from_numpy(np.empty(0, dtype.newbyteorder("="))).dtype).removeprefix("torch.")
    except TypeError:
        return None
