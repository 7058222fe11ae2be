"""Read the folder that `save_adapter` wrote."""

from __future__ import annotations

import hashlib
import json
from typing import TYPE_CHECKING, Any, get_type_hints

from safetensors import SafetensorError
from safetensors.torch import load

from lowrank_ldu.adapters.errors import AdapterError
from lowrank_ldu.adapters.file import AdapterFile, StoredLayer, check_numbers
from lowrank_ldu.adapters.layout import CONFIG_FILE, FORMAT, VERSION, WEIGHTS_FILE, LayerRecord
from lowrank_ldu.nn.kinds import KINDS

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor

_NUMBERS = (
    "offset", "sigma", "initial_sigma", "base_sample", "pivot_rows", "pivot_columns", "initial_diagonal", "signature",
)  # fmt: skip


def read_native(folder: Path) -> AdapterFile:
    """Read an adapter.

    Raises
    ------
    AdapterError
        A file is missing, damaged or changed.
    """
    config, tensors = _read_files(folder)
    path = folder / CONFIG_FILE
    layers = config.get("layers")
    if not isinstance(layers, dict) or not layers:
        raise AdapterError(f"{path}: 'layers' is {type(layers).__name__}; accepted: an object with at least one")
    modules = config.get("modules")
    if not isinstance(modules, list) or not all(isinstance(name, str) for name in modules):
        raise AdapterError(f"{path}: 'modules' is {modules!r}; accepted: a list of names")
    stored = {}
    for name, entry in layers.items():
        record = _record(path, name, entry)
        numbers = {key: tensors.pop(f"{name}.{key}") for key in _NUMBERS if f"{name}.{key}" in tensors}
        check_numbers(name, record, numbers)
        stored[name] = StoredLayer(name, record, numbers)
    foreign = sorted(name for name in tensors if not any(name.startswith(f"{module}.") for module in modules))
    if foreign:
        raise AdapterError(f"unknown tensors {foreign[:5]}; accepted: those of the layers and modules listed")
    return AdapterFile(stored, modules, tensors)


def _read_files(folder: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    try:
        data = (folder / WEIGHTS_FILE).read_bytes()
        text = (folder / CONFIG_FILE).read_bytes()
    except OSError as error:
        raise AdapterError(
            f"{error.filename}: {error.strerror}; accepted: a folder with {WEIGHTS_FILE} and {CONFIG_FILE}"
        ) from error
    path = folder / CONFIG_FILE
    try:
        config = json.loads(text)
    except ValueError as error:
        raise AdapterError(f"{path}: not JSON ({error})") from error
    if not isinstance(config, dict) or config.get("format") != FORMAT:
        raise AdapterError(f"{path}: not the configuration of a LoLDU adapter; accepted: format {FORMAT!r}")
    if config.get("version") != VERSION:
        raise AdapterError(f"{path}: format version {config.get('version')!r}; accepted: {VERSION}")
    if config.get("config_sha256") != config_digest(config):
        raise AdapterError(f"{path}: not what it was written as; it was changed")
    if config.get("weights_sha256") != hashlib.sha256(data).hexdigest():
        raise AdapterError(
            f"{folder / WEIGHTS_FILE}: not the file that {CONFIG_FILE} was written with; it is truncated or was changed"
        )
    try:
        return config, load(data)
    except SafetensorError as error:
        raise AdapterError(f"{folder / WEIGHTS_FILE}: not a safetensors file ({error})") from error


def config_digest(config: dict[str, Any]) -> str:
    """Return the SHA-256 of a configuration's content, but for the digest itself."""
    content = {key: value for key, value in config.items() if key != "config_sha256"}
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _record(path: Path, name: str, entry: Any) -> LayerRecord:
    fields = get_type_hints(LayerRecord)
    if not isinstance(entry, dict) or set(entry) != set(fields):
        raise AdapterError(f"{path}: layer {name!r}; accepted: an object with {', '.join(fields)}")
    shape = entry["shape"]
    if not (isinstance(shape, list) and len(shape) == 2 and all(isinstance(size, int) for size in shape)):
        raise AdapterError(f"{path}: layer {name!r} has shape {shape!r}; accepted: two integers")
    for key, kind in fields.items():
        value = entry[key]
        if key != "shape" and (type(value) is not kind and not (kind is float and type(value) is int)):
            raise AdapterError(f"{path}: layer {name!r} has {key} {value!r}; accepted: {kind.__name__}")
    if entry["kind"] not in KINDS:
        raise AdapterError(f"{path}: layer {name!r} has kind {entry['kind']!r}; accepted: {', '.join(KINDS)}")
    return LayerRecord(**{**entry, "shape": (shape[0], shape[1])})
