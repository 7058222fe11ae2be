"""List the readers of single files by suffix, and tell formats by content."""

from __future__ import annotations

import zipfile
from pathlib import PurePosixPath
from typing import TYPE_CHECKING

from lowrank_ldu.checkpoints.formats.gguf_file import GgufReader
from lowrank_ldu.checkpoints.formats.hdf5_file import Hdf5Reader
from lowrank_ldu.checkpoints.formats.numpy_file import NumpyReader
from lowrank_ldu.checkpoints.formats.onnx_file import OnnxReader
from lowrank_ldu.checkpoints.formats.safetensors_file import SafetensorsReader
from lowrank_ldu.checkpoints.formats.torch_file import TorchReader
from lowrank_ldu.errors import CheckpointError
from lowrank_ldu.untrusted import open_regular

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from lowrank_ldu.checkpoints.reader import CheckpointReader

SAFETENSORS_SUFFIX = ".safetensors"
TORCH_SUFFIXES = (".bin", ".pt", ".pth")
READERS: dict[str, Callable[[Path], CheckpointReader]] = {
    SAFETENSORS_SUFFIX: SafetensorsReader,
    **dict.fromkeys(TORCH_SUFFIXES, TorchReader),
    ".gguf": GgufReader,
    ".onnx": OnnxReader,
    ".h5": Hdf5Reader,
    ".hdf5": Hdf5Reader,
    ".npy": NumpyReader,
    ".npz": NumpyReader,
}
SUFFIXES = tuple(READERS)
# Of safetensors, in bytes, which is the library's limit.
_LONGEST_HEADER = 100_000_000
# The first bytes of files, and the suffix of their format.
_BEGINNINGS = {
    b"GGUF": ".gguf",
    b"\x89HDF\r\n\x1a\n": ".h5",
    b"\x93NUMPY": ".npy",
    b"\x80\x02": ".pt",
    b"\x80\x03": ".pt",
    b"\x80\x04": ".pt",
}


def suffix_by_content(path: Path) -> str:
    """Return the suffix of the format that a file has by its first bytes, or nothing.

    Checkpoints have many names: ``.ckpt``, ``.model``, ``.th``, or none. An ONNX model does not tell by its first
    bytes.

    Raises
    ------
    CheckpointError
        The file cannot be read, or is a part of an archive.
    """
    try:
        with open_regular(path) as file:
            beginning = file.read(9)
        if beginning.startswith(b"PK\x03\x04"):
            with zipfile.ZipFile(path) as archive:
                names = archive.namelist()
            if any(PurePosixPath(name).name == "data.pkl" for name in names):
                return ".pt"
            return ".npz" if names and all(name.endswith(".npy") for name in names) else ""
    except zipfile.BadZipFile as error:
        raise CheckpointError(
            f"{path}: begins as a zip archive does, and is not a whole one: it was cut off or is damaged"
        ) from error
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read ({error.strerror})") from error
    # Also where the file has been cut off in its header, which its reader says.
    if beginning[8:] == b"{" and int.from_bytes(beginning[:8], "little") <= _LONGEST_HEADER:
        return SAFETENSORS_SUFFIX
    return next((suffix for start, suffix in _BEGINNINGS.items() if beginning.startswith(start)), "")
