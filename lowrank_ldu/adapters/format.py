"""Define the format of an adapter's two files.

It covers the content of the files, its checks, and their seals.
"""

from __future__ import annotations

import base64
import hashlib
import json
import zlib
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, cast

from safetensors.torch import save

from lowrank_ldu.adapters.input_files import metadata_in
from lowrank_ldu.diagnostics.cost import PROBES, SAMPLES
from lowrank_ldu.errors import AdapterError
from lowrank_ldu.initialization import is_random
from lowrank_ldu.nn import AdapterOptions
from lowrank_ldu.nn.kinds import KINDS
from lowrank_ldu.nn.options import LATER_OPTIONS, OPTION_NAMES
from lowrank_ldu.untrusted import LISTING, strict_json
from lowrank_ldu.validation import check_choice, dtype_name, shown

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor

# Key in either configuration, of this package or of PEFT, of the path of the fitted basis.
BASIS_FILE = "basis_file"
FORMAT = "lowrank-ldu adapter"
VERSION = 2

# Key in the configuration of the SHA-256 of its text without these digits.
_KEY = "config_sha256"
_DIGITS = 64
# Key in the metadata of the weights' file. It has the SHA-256 of the file without its own digits, and the
# configuration.
_COPY, _NO_DIGEST = "adapter", "?" * _DIGITS


@dataclass(frozen=True)
class LayerRecord:
    """Hold one layer's entry in the configuration.

    The layer's tensors are `{name}.offset` and so on.

    Attributes
    ----------
    kind : str
        `LayerKind.name` of the base layer.
    shape : tuple of int
        (m, n) of the base weight as a matrix.
    base_dtype : str
        Of the base weight, "float32".
    base_sha256 : str
        `fingerprint` of that matrix; empty where it is not known.
    options : AdapterOptions
        Of the layer, rank and alpha among them. Their fields stand in the entry itself.
    lora_obstacle : str
        Why a LoRA pair beside the base layer would compute something else than the update; empty, and then not
        written, if it would not. Files of earlier versions have none.
    """

    kind: str
    shape: tuple[int, int]
    base_dtype: str
    base_sha256: str
    options: AdapterOptions
    lora_obstacle: str = ""

    def to_json(self) -> dict[str, Any]:
        """Return the entry as an object of JSON."""
        entry: dict[str, Any] = {}
        for field in fields(self):
            value = getattr(self, field.name)
            entry |= value.to_json() if field.name == "options" else {field.name: value}
        # Earlier versions know no such field, and read files without it.
        return entry if self.lora_obstacle else {key: entry[key] for key in entry if key != "lora_obstacle"}


_TEXTS = ("kind", "base_dtype", "base_sha256", "lora_obstacle")
_ENTRY = ("kind", "shape", "base_dtype", "base_sha256", *OPTION_NAMES, "lora_obstacle")


def checked_record(where: str, entry: Any) -> LayerRecord:
    """Return a layer's entry as a record.

    Parameters
    ----------
    where : str
        What the messages begin with: the file and the layer.
    entry : Any
        As JSON has it.

    Raises
    ------
    AdapterError
        A field is missing, unknown, of another type or of a value that is not accepted.
    """
    if not isinstance(entry, dict) or {*entry, "lora_obstacle", *LATER_OPTIONS} != set(_ENTRY):
        raise AdapterError(f"{where}; accepted: an object with {', '.join(_ENTRY)}")
    shape = entry["shape"]
    if not (isinstance(shape, list) and len(shape) == 2 and all(type(size) is int and size >= 0 for size in shape)):
        raise AdapterError(f"{where} has shape {shape!r}; accepted: two integers")
    texts = {key: entry.get(key, "") for key in _TEXTS}
    for key, text in texts.items():
        if not isinstance(text, str):
            raise AdapterError(f"{where} has {key} {text!r}; accepted: str")
    for key in ("rank", "alpha"):
        if entry[key] is None:
            raise AdapterError(f"{where} has {key} None; accepted: a number")
    try:
        check_choice(texts["kind"], "kind", KINDS)
        options = AdapterOptions.from_json({key: entry[key] for key in OPTION_NAMES if key in entry})
    except (TypeError, ValueError) as error:
        raise AdapterError(f"{where}: {error}") from error
    return LayerRecord(shape=(shape[0], shape[1]), options=options, **texts)


def checked_basis_file(path: Path, config: dict[str, Any]) -> str | None:
    """Return where a configuration says that its fitted basis is.

    Raises
    ------
    AdapterError
        It is no text.
    """
    named = config.get(BASIS_FILE)
    if named is not None and not isinstance(named, str):
        raise AdapterError(f"{path}: {BASIS_FILE} is {shown(named)}; accepted: a path, or null")
    return named


def check_numbers(where: str, record: LayerRecord, tensors: dict[str, Tensor], *, sketched: bool) -> None:
    """Check that a layer has exactly the tensors that it needs.

    They have their shapes and are finite, and the pivots are possible.

    Parameters
    ----------
    where : str
        What the messages begin with.
    record : LayerRecord
    tensors : dict of str to Tensor
    sketched : bool
        Whether the format keeps a sketch of the update.

    Raises
    ------
    AdapterError
        Naming the tensor.
    """
    shapes, limits = _expected(record.options, record.shape, sketched=sketched)
    for key, shape in shapes.items():
        if key not in tensors:
            raise AdapterError(f"{where}: the adapter holds no {key}")
        if tuple(tensors[key].shape) != shape:
            raise AdapterError(f"{where}: {key} has shape {tuple(tensors[key].shape)}; accepted: {shape}")
        if key in limits:
            _check_pivots(where, key, tensors[key], limits[key])
        elif not tensors[key].is_floating_point():
            raise AdapterError(f"{where}: {key} is {dtype_name(tensors[key])}; accepted: floating")
        # Numbers become float64, since torch cannot check those of 8 bits.
        elif not bool(tensors[key].double().isfinite().all()):
            raise AdapterError(f"{where}: {key} holds entries that are not finite")
    unknown = sorted(set(tensors) - set(shapes))
    if unknown:
        raise AdapterError(f"{where}: unknown tensors {unknown[:5]}; accepted: {', '.join(shapes)}")


def _expected(
    options: AdapterOptions, shape: tuple[int, int], *, sketched: bool
) -> tuple[dict[str, tuple[int, ...]], dict[str, int]]:
    """Return the shape of every tensor and the range of pivots.

    The range is the number of rows or columns that pivots are chosen from.
    """
    rank = cast("int", options.rank)
    sizes = {"sigma": 1, "initial_sigma": 1, "base_sample": SAMPLES}
    if sketched:
        sizes["update_sketch"] = PROBES
    if is_random(options.init):
        sizes["initial_diagonal"] = rank
    limits = {"pivot_rows": shape[0]} if options.chooses_rows else {}
    if options.chooses_columns:
        limits["pivot_columns"] = shape[1]
    vectors = {name: (size,) for name, size in (sizes | dict.fromkeys(limits, rank)).items()}
    return {"offset": options.core_shape, **vectors}, limits


def _check_pivots(where: str, key: str, pivots: Tensor, size: int) -> None:
    if pivots.is_floating_point() or pivots.is_complex():
        raise AdapterError(f"{where}: {key} is {dtype_name(pivots)}; accepted: integers")
    numbers = pivots.tolist()
    # PEFT's files do not say how many rows the weight has: it is found out when there is one.
    if min(numbers) < 0 or (size and max(numbers) >= size):
        largest = f" to {size - 1}" if size else " on"
        raise AdapterError(
            f"{where}: {key} holds indices from {min(numbers)} to {max(numbers)}; accepted: from 0{largest}"
        )
    if len(set(numbers)) != len(numbers):
        raise AdapterError(f"{where}: {key} holds an index twice; accepted: each at most once")


def sealed(config: dict[str, Any]) -> bytes:
    """Return a configuration as JSON with its checksum.

    The checksum is the SHA-256 of the text without the digits of the checksum.
    """
    digest = hashlib.sha256(_text(config, "")).hexdigest()
    return _text(config, digest)


def is_sealed(text: bytes, config: dict[str, Any]) -> bool:
    """Return whether `sealed` wrote a text.

    `text` reads as `config`.
    """
    digest = config.get(_KEY)
    if not isinstance(digest, str) or len(digest) != _DIGITS:
        return False
    return hashlib.sha256(text.replace(digest.encode(), b"")).hexdigest() == digest


def with_copy(config: dict[str, Any], tensors: dict[str, Tensor]) -> bytes:
    """Return a safetensors file with the configuration in it.

    It also has a checksum of the whole file. Two files cannot be replaced in one step. One of them holds everything: a
    reader that finds new weights beside an old configuration takes the copy.
    """
    text = zlib.compress(json.dumps(config, separators=(",", ":"), allow_nan=False).encode(), 9)
    copy = base64.b85encode(text).decode()
    # One entry, since the library writes several in any order.
    data = save(tensors, {_COPY: f"{_NO_DIGEST} {copy}"})
    digest = hashlib.sha256(data.replace(_NO_DIGEST.encode(), b"", 1)).hexdigest()
    return data.replace(_NO_DIGEST.encode(), digest.encode(), 1)


def copy_in(data: bytes) -> dict[str, Any] | None:
    """Return the configuration in a file of `with_copy`, or None.

    None if a byte of the file is not as it was.
    """
    digest, _, copy = metadata_in(data).get(_COPY, "").partition(" ")
    if len(digest) != _DIGITS or hashlib.sha256(data.replace(digest.encode(), b"", 1)).hexdigest() != digest:
        return None
    try:
        config = strict_json(zlib.decompressobj().decompress(base64.b85decode(copy), LISTING.size), LISTING)
    except (ValueError, zlib.error):
        return None
    return config if isinstance(config, dict) else None


def _text(config: dict[str, Any], digest: str) -> bytes:
    return json.dumps({**config, _KEY: digest}, indent=1, allow_nan=False).encode()
