"""Write and read sealed safetensors files.

The metadata of such a file is one record, which says what tensors there are and the SHA-256 of each, and the SHA-256 of
the record. That is the digest of the content; it does not depend on where the file has its tensors.
"""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Self

import torch

from lowrank_ldu import untrusted
from lowrank_ldu.checkpoints.formats.safetensors_file import SafetensorsReader
from lowrank_ldu.checkpoints.safe_reading import reason_of
from lowrank_ldu.checkpoints.writer import given, write_tensors
from lowrank_ldu.errors import CheckpointError, FittingError
from lowrank_ldu.files import whole_file
from lowrank_ldu.validation import dtype_name, shown

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from torch import Tensor

_RECORD, _DIGEST = "record", "sha256"


class Format(NamedTuple):
    """Name a format, and check its records.

    Attributes
    ----------
    name : str
        As it stands in the record.
    version : int
    check : callable
        Raises ValueError unless the record's fields and the tensors that it lists are those of the format.
    """

    name: str
    version: int
    check: Callable[[dict[str, Any]], None]


def checked_path(path: object) -> Path:
    """Return a caller's argument as a path.

    Raises
    ------
    TypeError
        It is none.
    """
    text = os.fspath(path) if isinstance(path, str | os.PathLike) else None
    if not isinstance(text, str):
        raise TypeError(f"path is a {type(path).__name__}; accepted: a path, as a str or a pathlib.Path")
    if "\0" in text:
        raise FittingError(f"path is {shown(text)}; accepted: a path, which has no null characters")
    return Path(text)


def described(tensors: Mapping[str, Tensor]) -> dict[str, dict[str, Any]]:
    """Return what a record says of its tensors: dtype, shape, SHA-256."""
    return {
        name: {"dtype": dtype_name(tensor), "shape": list(tensor.shape), "sha256": _sha256(tensor)}
        for name, tensor in sorted(tensors.items())
    }


def check_layers(record: Mapping[str, Any], fields: set[str], tensors: Sequence[str]) -> None:
    """Check a record's layers, and that its tensors are theirs.

    Parameters
    ----------
    record : mapping
    fields : set of str
        Of each layer beside its shape, two integers.
    tensors : sequence of str
        Of each layer, as "LAYER.NAME".

    Raises
    ------
    ValueError
    """
    layers = record["layers"]
    if not isinstance(layers, dict) or not layers:
        raise ValueError("the record has no layers; accepted: at least one")
    for name, entry in layers.items():
        shape = entry.get("shape") if isinstance(entry, dict) and set(entry) == {"shape", *fields} else None
        if not (isinstance(shape, list) and len(shape) == 2 and all(type(each) is int and each > 0 for each in shape)):
            raise ValueError(
                f"layer {name!r} is {shown(entry)}; accepted: a shape of two integers, and {', '.join(sorted(fields))}"
            )
    listed = {f"{name}.{key}" for name in layers for key in tensors}
    odd = sorted(listed ^ set(record["tensors"]))
    if odd:
        raise ValueError(f"tensor {odd[0]!r} is missing or of no layer; accepted: {', '.join(tensors)} of each layer")


def digest_of(record: Mapping[str, Any]) -> str:
    """Return the SHA-256 of a record, which is the content's digest."""
    return hashlib.sha256(_text(record)).hexdigest()


def write_sealed(path: Path, tensors: Mapping[str, Tensor], record: Mapping[str, Any]) -> None:
    """Write a file whole or not at all.

    Raises
    ------
    FittingError
        It cannot be written.
    """
    try:
        with whole_file(path) as temporary:
            entries = [given(name, tensor) for name, tensor in tensors.items()]
            write_tensors(temporary, entries, {_RECORD: _text(record).decode(), _DIGEST: digest_of(record)})
    except OSError as error:
        raise FittingError(f"{path}: cannot be written ({error.strerror or reason_of(error)})") from error


class SealedFile:
    """Sealed file, whose tensors are read one by one.

    Parameters
    ----------
    path : Path
    form : Format

    Attributes
    ----------
    record : dict
    digest : str

    Raises
    ------
    FittingError
        There is no such file, it is of another format or version, or was cut short or changed.
    """

    def __init__(self, path: Path, form: Format) -> None:
        self.path = path
        what = f"a {form.name} file"
        try:
            untrusted.check_regular(path)
        except (OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or reason_of(error)
            raise FittingError(f"{path}: {reason}; accepted: {what}") from error
        try:
            self._reader = SafetensorsReader(path)
        except CheckpointError as error:
            raise FittingError(str(error)) from error
        text = self._reader.metadata.get(_RECORD)
        if text is None:
            raise FittingError(f"{path}: a safetensors file without a record; accepted: {what}")
        try:
            record = untrusted.strict_json(text.encode(), untrusted.LISTING)
        except ValueError as error:
            raise FittingError(f"{path}: its record cannot be read ({reason_of(error)}); accepted: {what}") from error
        if not isinstance(record, dict) or record.get("format") != form.name:
            raise FittingError(f"{path}: not {what}; accepted: format {form.name!r}")
        if type(record.get("version")) is not int or record["version"] != form.version:
            raise FittingError(f"{path}: format version {record.get('version')!r}; accepted: {form.version}")
        self.record: dict[str, Any] = record
        self.digest = digest_of(record)
        if self._reader.metadata.get(_DIGEST) != self.digest:
            raise FittingError(f"{path}: its record is not the one that was written; the file was changed")
        self._check_listing()
        try:
            form.check(record)
        except ValueError as error:
            raise FittingError(f"{path}: {error}") from error

    def _check_listing(self) -> None:
        listed = self.record.get("tensors")
        entry = {"dtype", "shape", "sha256"}
        if not isinstance(listed, dict) or not all(isinstance(v, dict) and set(v) == entry for v in listed.values()):
            raise FittingError(f"{self.path}: its record lists no tensors; accepted: dtype, shape and sha256 of each")
        there = {info.name: info for info in self._reader.tensors}
        odd = sorted(set(listed) ^ set(there))
        if odd:
            where = "in the record alone" if odd[0] in listed else "not in the record"
            raise FittingError(f"{self.path}: tensor {odd[0]!r} is {where}; the file was changed")
        for name, info in there.items():
            if listed[name]["dtype"] != info.dtype or listed[name]["shape"] != list(info.shape):
                raise FittingError(
                    f"{self.path}: tensor {name!r} is {info.dtype} {info.shape}; accepted: {listed[name]['dtype']} "
                    f"{tuple(listed[name]['shape'])}, as the record has it"
                )

    def read(self, name: str) -> Tensor:
        """Return a tensor whose bytes are those that were written.

        Raises
        ------
        FittingError
            They are not, or there is no such tensor.
        """
        try:
            tensor = self._reader.load(name)
        except CheckpointError as error:
            raise FittingError(str(error)) from error
        if _sha256(tensor) != self.record["tensors"][name]["sha256"]:
            raise FittingError(f"{self.path}: tensor {name!r} is not the one that was written; the file was changed")
        return tensor

    def close(self) -> None:
        """Let go of the file."""
        self._reader.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _text(record: Mapping[str, Any]) -> bytes:
    return json.dumps(record, sort_keys=True, separators=(",", ":"), allow_nan=False).encode()


def _sha256(tensor: Tensor) -> str:
    content = tensor.detach().cpu().contiguous()
    return hashlib.sha256(content.flatten().view(torch.uint8).numpy().data).hexdigest()
