"""Read an adapter and put it into a model."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_type_hints

import torch
from safetensors import SafetensorError
from safetensors.torch import load
from torch import nn

from lowrank_ldu.adapters.errors import AdapterError
from lowrank_ldu.adapters.fingerprint import fingerprint
from lowrank_ldu.adapters.layout import CONFIG_FILE, FORMAT, VERSION, WEIGHTS_FILE, LayerRecord
from lowrank_ldu.decomposition import ldu_at_pivots
from lowrank_ldu.nn import LoLDULayer
from lowrank_ldu.nn.freezing import restore_trainable_on_error
from lowrank_ldu.nn.initialization import is_random
from lowrank_ldu.nn.injection import replace_module

if TYPE_CHECKING:
    import os

    from torch import Tensor


def load_adapter(model: nn.Module, path: str | os.PathLike[str]) -> list[str]:
    """Put a saved adapter into the model it was trained on, in place.

    The factors are rebuilt from the stored pivots without a search, so that they are the same on every machine.

    Parameters
    ----------
    model : nn.Module
        The base model, without LoLDU layers where the adapter has some.
    path : path
        Folder that `save_adapter` wrote.

    Returns
    -------
    list of str
        Qualified names of the layers that were replaced. Modules that were saved whole are loaded as well. Nothing is
        frozen or unfrozen beyond what `LoLDULayer` does to its own base layer.

    Raises
    ------
    AdapterError
        A file is missing, damaged or changed; a layer of the adapter is missing in the model, is not an nn.Linear, has
        another shape or another weight than in training. The model is then unchanged.
    """
    records, modules, tensors = _read(Path(path))
    with restore_trainable_on_error(model):
        layers = {name: _build(model, name, record, tensors) for name, record in records.items()}
        states = {name: _module_state(model, name, tensors) for name in modules}
        if tensors:
            raise AdapterError(
                f"unknown tensors {sorted(tensors)[:5]}; accepted: those of the layers and modules listed"
            )
    # A base layer that stands under two names was saved once and is replaced twice.
    by_base: dict[nn.Module, LoLDULayer] = {layer.base_layer: layer for layer in layers.values()}
    for name, module in list(model.named_modules(remove_duplicate=False)):
        if module in by_base and isinstance(module, nn.Linear):
            replace_module(model, name, by_base[module])
    for name, state in states.items():
        model.get_submodule(name).load_state_dict(state)
    return list(layers)


def _read(folder: Path) -> tuple[dict[str, LayerRecord], list[str], dict[str, Tensor]]:
    try:
        data = (folder / WEIGHTS_FILE).read_bytes()
        text = (folder / CONFIG_FILE).read_bytes()
    except OSError as error:
        raise AdapterError(
            f"{error.filename}: {error.strerror}; accepted: a folder with {WEIGHTS_FILE} and {CONFIG_FILE}"
        ) from error
    config_path = folder / CONFIG_FILE
    try:
        config = json.loads(text)
    except ValueError as error:
        raise AdapterError(f"{config_path}: not JSON ({error})") from error
    if not isinstance(config, dict) or config.get("format") != FORMAT:
        raise AdapterError(f"{config_path}: not the configuration of a LoLDU adapter; accepted: format {FORMAT!r}")
    if config.get("version") != VERSION:
        raise AdapterError(f"{config_path}: format version {config.get('version')!r}; accepted: {VERSION}")
    if config.get("weights_sha256") != hashlib.sha256(data).hexdigest():
        raise AdapterError(
            f"{folder / WEIGHTS_FILE}: not the file that {CONFIG_FILE} was written with; it is truncated or was changed"
        )
    try:
        tensors = load(data)
    except SafetensorError as error:
        raise AdapterError(f"{folder / WEIGHTS_FILE}: not a safetensors file ({error})") from error
    layers = config.get("layers")
    if not isinstance(layers, dict) or not layers:
        raise AdapterError(f"{config_path}: 'layers' is {type(layers).__name__}; accepted: an object with at least one")
    modules = config.get("modules")
    if not isinstance(modules, list) or not all(isinstance(name, str) for name in modules):
        raise AdapterError(f"{config_path}: 'modules' is {modules!r}; accepted: a list of names")
    return {name: _record(config_path, name, entry) for name, entry in layers.items()}, modules, tensors


def _record(path: Path, name: str, entry: Any) -> LayerRecord:
    fields = get_type_hints(LayerRecord)
    if not isinstance(entry, dict) or set(entry) != set(fields):
        raise AdapterError(f"{path}: layer {name!r}; accepted: an object with {', '.join(fields)}")
    shape = entry["shape"]
    if not (isinstance(shape, list) and len(shape) == 2 and all(isinstance(size, int) for size in shape)):
        raise AdapterError(f"{path}: layer {name!r} has shape {shape!r}; accepted: two integers")
    for key, kind in fields.items():
        if key != "shape" and not isinstance(entry[key], (int, float) if kind is float else kind):
            raise AdapterError(f"{path}: layer {name!r} has {key} {entry[key]!r}; accepted: {kind.__name__}")
    return LayerRecord(**{**entry, "shape": (shape[0], shape[1])})


def _build(model: nn.Module, name: str, record: LayerRecord, tensors: dict[str, Tensor]) -> LoLDULayer:
    """Make the layer, taking its tensors out of `tensors`."""
    linear = _base_layer(model, name, record)
    rows = _take(tensors, name, "pivot_rows", record.rank)
    columns = None
    if f"{name}.pivot_columns" in tensors:
        columns = _take(tensors, name, "pivot_columns", record.rank).tolist()
    offset = _take(tensors, name, "offset", record.rank)
    sigma = _take(tensors, name, "sigma", 1)
    try:
        factors = ldu_at_pivots(linear.weight, rows.tolist(), columns, pivoting=record.pivoting)  # type: ignore[arg-type]
        layer = LoLDULayer(
            linear,
            alpha=record.alpha,
            init=record.init,  # type: ignore[arg-type]
            preserving=record.preserving,
            pivoting=record.pivoting,  # type: ignore[arg-type]
            factors=factors,
        )
        if is_random(layer.adapter.init):
            layer.adapter.set_initial_diagonal(_take(tensors, name, "initial_diagonal", record.rank), layer.factors)
    except (TypeError, ValueError) as error:
        raise AdapterError(f"layer {name!r}: {error}") from error
    with torch.no_grad():
        layer.offset.copy_(offset)
        layer.sigma.copy_(sigma)
    return layer


def _module_state(model: nn.Module, name: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Take the state of a module that was saved whole out of `tensors`, and check that it fits."""
    try:
        expected = model.get_submodule(name).state_dict()
    except AttributeError as error:
        raise AdapterError(f"module {name!r}: the model ({type(model).__name__}) has no such module") from error
    state = {key: tensors.pop(f"{name}.{key}") for key in expected if f"{name}.{key}" in tensors}
    for key, tensor in expected.items():
        found = tuple(state[key].shape) if key in state else None
        if found != tuple(tensor.shape):
            raise AdapterError(
                f"module {name!r}: {key} has shape {found} in the adapter; accepted: {tuple(tensor.shape)}"
            )
    return state


def _base_layer(model: nn.Module, name: str, record: LayerRecord) -> nn.Linear:
    try:
        linear = model.get_submodule(name)
    except AttributeError as error:
        raise AdapterError(f"layer {name!r}: the model ({type(model).__name__}) has no such module") from error
    if not isinstance(linear, nn.Linear):
        raise AdapterError(f"layer {name!r} is a {type(linear).__name__} in the model; accepted: an nn.Linear")
    shape = tuple(linear.weight.shape)
    if shape != record.shape:
        raise AdapterError(f"layer {name!r} has shape {shape} in the model; accepted: {record.shape}, as in training")
    if linear.weight.device.type == "meta":
        raise AdapterError(f"layer {name!r} is on the meta device and has no data; accepted: a materialised base model")
    if fingerprint(linear.weight) != record.base_sha256:
        raise AdapterError(
            f"layer {name!r}: the weight is not the one that the adapter was trained on, so its diagonal means "
            f"something else; accepted: the same base, with SHA-256 {record.base_sha256[:16]}..."
        )
    return linear


def _take(tensors: dict[str, Tensor], name: str, key: str, length: int) -> Tensor:
    tensor = tensors.pop(f"{name}.{key}", None)
    if tensor is None:
        raise AdapterError(f"layer {name!r}: the adapter holds no {key}")
    if tuple(tensor.shape) != (length,):
        raise AdapterError(f"layer {name!r}: {key} has shape {tuple(tensor.shape)}; accepted: ({length},)")
    if tensor.is_floating_point() and not bool(tensor.isfinite().all()):
        raise AdapterError(f"layer {name!r}: {key} holds entries that are not finite")
    return tensor
