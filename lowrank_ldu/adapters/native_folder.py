"""Read the folder that `save_adapter` wrote."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Any

from safetensors.torch import load

from lowrank_ldu.adapters.format import (
    FORMAT,
    VERSION,
    check_numbers,
    checked_basis_file,
    checked_record,
    copy_in,
    is_sealed,
)
from lowrank_ldu.adapters.input_files import read_json, read_tensors
from lowrank_ldu.adapters.stored_layer import AdapterFile, StoredLayer
from lowrank_ldu.checkpoints.adapter_folder import CONFIG_FILE, WEIGHTS_FILE
from lowrank_ldu.checkpoints.safe_reading import reason_of
from lowrank_ldu.errors import AdapterError

if TYPE_CHECKING:
    from collections.abc import Container
    from pathlib import Path

    from torch import Tensor

_NUMBERS = (
    "offset", "sigma", "initial_sigma", "base_sample", "update_sketch", "pivot_rows", "pivot_columns",
    "initial_diagonal",
)  # fmt: skip


def read_native(folder: Path) -> AdapterFile:
    """Read an adapter from this package's folder.

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
        where = f"{path}: layer {name!r}"
        record = checked_record(where, entry)
        numbers = {key: tensors.pop(f"{name}.{key}") for key in _NUMBERS if f"{name}.{key}" in tensors}
        check_numbers(where, record, numbers, sketched=True)
        stored[name] = StoredLayer(name, record, numbers)
    foreign = sorted(name for name in tensors if not any(name.startswith(f"{module}.") for module in modules))
    if foreign:
        raise AdapterError(
            f"{folder / WEIGHTS_FILE}: unknown tensors {foreign[:5]}; accepted: those of the layers and modules listed"
        )
    tied, shared = _other_names(path, config, "tied", tensors), _other_names(path, config, "shared", stored)
    basis_file = checked_basis_file(path, config)
    return AdapterFile(stored, modules, tensors, tied=tied, shared=shared or {}, basis_file=basis_file)


def _other_names(path: Path, config: dict[str, Any], key: str, known: Container[str]) -> dict[str, list[str]] | None:
    """Return the other names that tensors or layers had in training.

    None in files of versions that wrote no such names.
    """
    names = config.get(key)
    if names is None:
        return None
    good = isinstance(names, dict) and all(
        name in known and isinstance(others, list) and all(isinstance(other, str) for other in others)
        for name, others in names.items()
    )
    if not good:
        raise AdapterError(f"{path}: {key!r} is {names!r}; accepted: an object of its names to lists of other names")
    return names  # type: ignore[no-any-return]


def _read_files(folder: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    path = folder / CONFIG_FILE
    accepted = f"a folder with {WEIGHTS_FILE} and {CONFIG_FILE}, or what PEFT's save_pretrained wrote"
    config, text = read_json(path, accepted)
    data = read_tensors(folder / WEIGHTS_FILE, accepted)
    if not isinstance(config, dict) or config.get("format") != FORMAT:
        raise AdapterError(f"{path}: not the configuration of a LoLDU adapter; accepted: format {FORMAT!r}")
    if type(config.get("version")) is not int or config["version"] != VERSION:
        raise AdapterError(f"{path}: format version {config.get('version')!r}; accepted: {VERSION}")
    if not is_sealed(text, config):
        raise AdapterError(f"{path}: not the file that save_adapter wrote; it was changed")
    if config.get("weights_sha256") != hashlib.sha256(data).hexdigest():
        # A process that replaces both files may have ended after the weights.
        copy = copy_in(data)
        if copy is None or (copy.get("format"), copy.get("version")) != (FORMAT, VERSION):
            raise AdapterError(
                f"{folder / WEIGHTS_FILE}: not the file that {CONFIG_FILE} was written with; it is truncated or was "
                "changed"
            )
        config = copy
    try:
        return config, load(data)
    except Exception as error:  # a bare KeyError where torch lacks a dtype
        raise AdapterError(f"{folder / WEIGHTS_FILE}: not a safetensors file ({reason_of(error)})") from error
