"""Read the header and values of a ``.safetensors`` file.

Here are the names of its dtypes, too.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from safetensors import SafetensorError, safe_open

from lowrank_ldu.checkpoints.reader import CheckpointReader, TensorInfo
from lowrank_ldu.checkpoints.remote.path import RemotePath
from lowrank_ldu.checkpoints.safe_reading import empty_tensor, refused_as, stored_parts, stored_range
from lowrank_ldu.errors import CheckpointError
from lowrank_ldu.untrusted import safetensors_header

if TYPE_CHECKING:
    from collections.abc import Iterator

    from lowrank_ldu.checkpoints.remote.path import Place

# torch's names of the format's dtypes. Those of less than a byte have none: torch packs two of them into one entry.
DTYPES = {
    "BOOL": "bool",
    "U8": "uint8",
    "U16": "uint16",
    "U32": "uint32",
    "U64": "uint64",
    "I8": "int8",
    "I16": "int16",
    "I32": "int32",
    "I64": "int64",
    "F8_E4M3": "float8_e4m3fn",
    "F8_E4M3FNUZ": "float8_e4m3fnuz",
    "F8_E5M2": "float8_e5m2",
    "F8_E5M2FNUZ": "float8_e5m2fnuz",
    "F8_E8M0": "float8_e8m0fnu",
    "F16": "float16",
    "BF16": "bfloat16",
    "F32": "float32",
    "F64": "float64",
    "C64": "complex64",
}
CODES = {name: code for code, name in DTYPES.items()}


# Errors that mean: this is no safetensors file.
HEADER_ERRORS = (SafetensorError, OSError, ValueError)


class Header(NamedTuple):
    """Hold the header of a file.

    Attributes
    ----------
    tensors : dict of str to dict
        Of each tensor its dtype, shape and data_offsets, in the order of the values.
    metadata : dict of str to str
        Texts beside the tensors.
    start : int
        Where the values begin.
    """

    tensors: dict[str, dict[str, Any]]
    metadata: dict[str, str]
    start: int


_Contents = tuple[list[TensorInfo], dict[str, int], dict[str, str]]


def read_header(path: Place) -> Header:
    """Read the header of a safetensors file, here or on a server.

    Raises
    ------
    SafetensorError
        The library refuses the header: it is damaged, too long, or does not fit the file.
    ValueError
        It has a key twice, of which the library takes the last one, or is no such file any more.
    OSError
        The file cannot be read.
    RemoteError
        The server does not give it.
    """
    if isinstance(path, RemotePath):
        with path.as_header() as local:
            return read_header(local)
    # The library checks the header against the file. It is not asked for the values: its torch side maps the whole
    # file as private memory, which Linux refuses for a file larger than the machine's memory.
    with safe_open(path, framework="numpy"):
        pass
    header, start = safetensors_header(path)
    metadata = header.pop("__metadata__", None) or {}
    tensors = dict(sorted(header.items(), key=lambda item: item[1]["data_offsets"]))
    return Header(tensors, metadata, start)


class SafetensorsReader(CheckpointReader):
    """Reader of one ``.safetensors`` file.

    Only its header is read until a tensor is loaded.

    Parameters
    ----------
    path : pathlib.Path or RemotePath
        The file.

    Attributes
    ----------
    metadata : dict of str to str
        What the file says of itself beside its tensors.

    Raises
    ------
    CheckpointError
        If the file is missing, or is not a whole and valid safetensors file.
    """

    def __init__(self, path: Place) -> None:
        # Readers of shards come and go; a header on a server is read once for all of them.
        contents: _Contents = path.once(partial(_contents, path)) if isinstance(path, RemotePath) else _contents(path)
        tensors, self._starts, self.metadata = contents
        super().__init__(path, tensors, {})

    def parts(self, name: str) -> Iterator[bytes]:
        """Yield a tensor's stored bytes part by part.

        The tensor may have any dtype.

        Raises
        ------
        CheckpointError
            If there is no such tensor, if its bytes cannot be read, or if the reader is closed.
        """
        info = self.info(name)
        return stored_parts(self.path, name, self._starts[name], info.nbytes)

    def _read(self, info: TensorInfo) -> torch.Tensor:
        dtype = torch_dtype(info)
        if info.nbytes == 0:
            return empty_tensor(self.path, info.name, info.shape, dtype)
        values = stored_range(self.path, info.name, self._starts[info.name], info.nbytes)
        return torch.frombuffer(values, dtype=dtype).reshape(info.shape)


def _contents(path: Place) -> _Contents:
    """Return the tensors of a file, where each begins, and its metadata."""
    with refused_as(path, "safetensors file", HEADER_ERRORS):
        entries, metadata, values = read_header(path)
    tensors = []
    for name, entry in entries.items():
        start, end = entry["data_offsets"]
        dtype = DTYPES.get(entry["dtype"], entry["dtype"])
        tensors.append(TensorInfo(name, tuple(entry["shape"]), dtype, str(path), end - start))
    return tensors, {name: values + entry["data_offsets"][0] for name, entry in entries.items()}, metadata


def torch_dtype(info: TensorInfo) -> torch.dtype:
    """Return the dtype of a stored tensor.

    Raises
    ------
    CheckpointError
        torch has no such dtype.

    Examples
    --------
    >>> torch_dtype(TensorInfo("a", (2,), "bfloat16", "model.safetensors", 4))
    torch.bfloat16
    """
    dtype = getattr(torch, info.dtype, None)
    if dtype is None:
        raise CheckpointError(
            f"{info.file}: tensor {info.name!r} is stored as {info.dtype}, which torch {torch.__version__} has no "
            f"plain tensors of; accepted: {', '.join(name for name in DTYPES.values() if hasattr(torch, name))}"
        )
    return dtype  # type: ignore[no-any-return]


def format_dtype(dtype: torch.dtype) -> str:
    """Return the format's name of a dtype.

    Raises
    ------
    CheckpointError
        The format has none.

    Examples
    --------
    >>> format_dtype(torch.bfloat16)
    'BF16'
    """
    code = CODES.get(str(dtype).removeprefix("torch."))
    if code is None:
        raise CheckpointError(f"a tensor is {dtype}; accepted: dtypes that safetensors has a name for")
    return code
