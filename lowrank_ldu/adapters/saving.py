"""Write an adapter."""

from __future__ import annotations

import hashlib
import json
import os
import secrets
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from safetensors.torch import save

from lowrank_ldu.adapters.file import basis_signature
from lowrank_ldu.adapters.fingerprint import fingerprint
from lowrank_ldu.adapters.layout import CONFIG_FILE, FORMAT, VERSION, WEIGHTS_FILE, LayerRecord
from lowrank_ldu.adapters.native_folder import config_digest
from lowrank_ldu.nn import LoLDULayer, lowrank_layers
from lowrank_ldu.nn.host import hosts, weight_matrix
from lowrank_ldu.validation import dtype_name

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor, nn


def save_adapter(model: nn.Module, path: str | os.PathLike[str], *, modules_to_save: Sequence[str] = ()) -> Path:
    """Write the trained numbers of every LoLDU layer of `model`, and nothing of the base.

    Parameters
    ----------
    model : nn.Module
        Its LoLDU layers are not merged.
    path : path
        A folder, made if it is not there. Files of an adapter in it are replaced, each at once.
    modules_to_save : sequence of str
        Qualified names of modules that were trained whole, such as a new classification head; their state is
        written too.

    Returns
    -------
    Path
        The folder. `adapter.safetensors` holds for each layer offset, sigma, its start, the pivots (in the smallest
        integer type that fits), a sample of the base weight and, where it was drawn at random, the start of z;
        `adapter.json` the options and a fingerprint of the base weight.

    Raises
    ------
    TypeError
        `modules_to_save` is a single string.
    ValueError
        `path` is a file. The model has no LoLDU layer, or no module of a name in `modules_to_save`, or that module has
        one inside.
    RuntimeError
        A layer is merged, so that its base weight cannot be told.
    """
    if isinstance(modules_to_save, str):
        raise TypeError(f"modules_to_save is the string {modules_to_save!r}; accepted: a sequence of names")
    if Path(path).exists() and not Path(path).is_dir():
        raise ValueError(f"path is {str(path)!r}, which is a file; accepted: a folder")
    tensors: dict[str, Tensor] = {}
    records: dict[str, LayerRecord] = {}
    for name, layer in lowrank_layers(model):
        if layer.merged:
            raise RuntimeError(f"layer {name!r} is merged; accepted: unmerge it before saving")
        records[name] = _record(layer)
        tensors.update({f"{name}.{key}": tensor for key, tensor in _tensors(layer).items()})
    if not records:
        wrapped = next(hosts(model), None) is not None
        hint = "save_pretrained of the PEFT model" if wrapped else "one that `inject` was used on"
        raise ValueError(f"the model ({type(model).__name__}) has no LoLDU layer of its own; accepted: {hint}")
    for name in modules_to_save:
        tensors.update({f"{name}.{key}": tensor for key, tensor in _whole_module(model, name).items()})
    folder = Path(path)
    folder.mkdir(parents=True, exist_ok=True)
    data = save(tensors)
    config = {
        "format": FORMAT,
        "version": VERSION,
        "weights_sha256": hashlib.sha256(data).hexdigest(),
        "layers": {name: asdict(record) for name, record in records.items()},
        "modules": list(modules_to_save),
    }
    config["config_sha256"] = config_digest(config)
    # Each file is whole or not there, and the checksum tells whether the two belong together.
    _write(folder / WEIGHTS_FILE, data)
    _write(folder / CONFIG_FILE, json.dumps(config, indent=1).encode())
    return folder


def _record(layer: LoLDULayer) -> LayerRecord:
    matrix = weight_matrix(layer.base_layer)
    return LayerRecord(
        kind=layer.kind.name,
        shape=(int(matrix.shape[0]), int(matrix.shape[1])),
        base_dtype=dtype_name(matrix),
        base_sha256=fingerprint(matrix),
        **layer.options,
    )


def _tensors(layer: LoLDULayer) -> dict[str, Tensor]:
    # The state that the layer loads from, the pivots in their smallest type.
    tensors: dict[str, Tensor] = layer.adapter.state_dict()
    if layer.factors.options.basis == "svd":
        tensors["signature"] = basis_signature(layer.factors)
    # Clones: a tensor may share its memory with another, which the file format does not take.
    return {key: tensor.detach().cpu().clone() for key, tensor in tensors.items()}


def _whole_module(model: nn.Module, name: str) -> dict[str, Tensor]:
    try:
        module = model.get_submodule(name)
    except AttributeError as error:
        raise ValueError(
            f"modules_to_save names {name!r}; the model ({type(model).__name__}) has no such module"
        ) from error
    if next(lowrank_layers(module), None) is not None:
        raise ValueError(f"modules_to_save names {name!r}, which has LoLDU layers; accepted: modules without any")
    # Clones: tied tensors would share memory, which the file format does not take.
    return {key: tensor.detach().cpu().clone() for key, tensor in module.state_dict().items()}


def _write(path: Path, data: bytes) -> None:
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        with temporary.open("xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
