"""Write an adapter to a folder."""

from __future__ import annotations

import hashlib
import os
import warnings
from typing import TYPE_CHECKING

import torch

from lowrank_ldu.adapters.bases import given_basis
from lowrank_ldu.adapters.format import (
    BASIS_FILE,
    FORMAT,
    VERSION,
    LayerRecord,
    check_numbers,
    sealed,
    with_copy,
)
from lowrank_ldu.adapters.input_files import checked_model_and_path, checked_path
from lowrank_ldu.adapters.peft_folder import PEFT_CONFIG
from lowrank_ldu.adapters.stored_layer import StoredLayer
from lowrank_ldu.adapters.ties import tied_tensors
from lowrank_ldu.checkpoints.adapter_folder import CONFIG_FILE, WEIGHTS_FILE
from lowrank_ldu.errors import AdapterError
from lowrank_ldu.files import replace_file
from lowrank_ldu.nn import LDULayer, lowrank_layers
from lowrank_ldu.nn.base_identity import fingerprint, update_sketch
from lowrank_ldu.nn.calls import warn_of_passed_by
from lowrank_ldu.nn.host import hosts
from lowrank_ldu.nn.kinds import lora_obstacle
from lowrank_ldu.nn.modules import is_sharded, places, plain_name, plain_submodule, unwrapped
from lowrank_ldu.nn.weights import weight_matrix
from lowrank_ldu.validation import check_names, dtype_name

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from torch import Tensor, nn

# Number of parameters that a warning names.
_NAMED = 5


def save_adapter(
    model: nn.Module,
    path: str | os.PathLike[str],
    *,
    modules_to_save: Sequence[str] = (),
    basis_file: str | os.PathLike[str] | None = None,
) -> Path:
    """Write the trained numbers of every LoLDU layer.

    Nothing of the base is written.

    Parameters
    ----------
    model : nn.Module
        Its LoLDU layers are not merged.
    path : path
        A folder, made if it is not there. An adapter in it is replaced: at every moment, and whatever ends the process,
        `load_adapter` finds the old one or the new one.
    modules_to_save : sequence of str
        Qualified names of modules that were trained whole, such as a new classification head; their state is
        written too.
    basis_file : path, optional
        File of the fitted basis that the factors are of. Its path is written, and `load_adapter` looks there and for a
        file of that name beside the folder. The basis itself is never copied: it is large, and adapters share it. Its
        digest is written in any case.

    Returns
    -------
    Path
        The folder. `adapter.safetensors` holds for each layer offset, sigma, its start, the pivots (in the smallest
        integer type that fits), a sample of the base weight, a sketch of the update and, where it was drawn at random,
        the start of z; `adapter.json` the options and a fingerprint of the base weight.

    Raises
    ------
    TypeError
        `model` is no module, `path` no path, or `modules_to_save` no sequence of names.
    ValueError
        `path` is a file, or holds an adapter that PEFT saved. The model has no LoLDU layer, is one itself, or has one
        whose numbers are not finite. It has no module of a name in `modules_to_save`, or that module has a LoLDU layer
        inside, is inside one, or has state that is no tensor. `basis_file` cannot be read, or is of no layer's basis.
    RuntimeError
        A layer is merged, so that its base weight cannot be told, or is sharded by fully_shard.

    Warns
    -----
    UserWarning
        A layer's rank is above its base's own, so that some of its terms are rounding errors and `load_adapter` will
        refuse the file; the model has been called, and never called one of its layers, whose adapter had no effect; or
        parameters that `inject` froze train again and are not written.
    """
    folder = checked_model_and_path(model, path)
    modules = check_names(modules_to_save, "modules_to_save", "a sequence of names")
    named = None if basis_file is None else str(checked_path(basis_file, BASIS_FILE))
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"path is {str(folder)!r}, which is a file; accepted: a folder")
    if os.path.lexists(folder / PEFT_CONFIG):
        raise ValueError(f"path is {str(folder)!r}, which holds an adapter of PEFT's; accepted: another folder")
    tensors: dict[str, Tensor] = {}
    records: dict[str, LayerRecord] = {}
    model = unwrapped(model)
    for place, layer in lowrank_layers(model):
        name = plain_name(place, model)
        if layer.merged:
            raise RuntimeError(f"layer {name!r} is merged; accepted: unmerge it before saving")
        if is_sharded(layer):
            raise RuntimeError(
                f"layer {name!r} is sharded by fully_shard, each process having a part of it; accepted: the whole "
                "model, with its full state dict loaded"
            )
        if not name:
            raise ValueError("the model is a LoLDU layer itself; accepted: a model with LoLDU layers inside")
        records[name], numbers = _record(layer), _tensors(layer)
        check_numbers(f"layer {name!r}", records[name], numbers, sketched=True)
        _warn_of_rounding(layer, StoredLayer(name, records[name], numbers))
        tensors.update({f"{name}.{key}": tensor for key, tensor in numbers.items()})
    if not records:
        wrapped = next(hosts(model), None) is not None
        hint = "save_pretrained of the PEFT model" if wrapped else "one that `inject` was used on"
        raise ValueError(f"the model ({type(model).__name__}) has no LoLDU layer of its own; accepted: {hint}")
    if named is not None:
        _check_basis(named, records)
    warn_of_passed_by(model)
    modules = [plain_name(name, model) for name in modules]
    whole = {f"{name}.{key}": tensor for name in modules for key, tensor in _whole_module(model, name).items()}
    tensors.update(whole)
    _warn_of_left_out(model, modules)
    folder.mkdir(parents=True, exist_ok=True)
    config = {
        "format": FORMAT,
        "version": VERSION,
        "layers": {name: record.to_json() for name, record in records.items()},
        "modules": modules,
        "tied": tied_tensors(model, whole),
        "shared": _shared(model),
    } | ({} if named is None else {BASIS_FILE: named})
    data = with_copy(config, tensors)
    # From here on the folder holds the new adapter: the weights have a copy of their configuration.
    replace_file(folder / WEIGHTS_FILE, data)
    replace_file(folder / CONFIG_FILE, sealed({**config, "weights_sha256": hashlib.sha256(data).hexdigest()}))
    return folder


def _check_basis(named: str, records: dict[str, LayerRecord]) -> None:
    digests = {str(record.options.basis_digest) for record in records.values() if record.options.basis_digest}
    digest = given_basis(named).digest
    if digest not in digests:
        wanted = ", ".join(sorted(digests)) or "none, as no layer has a fitted basis"
        raise AdapterError(f"{BASIS_FILE} is {named!r}, of digest {digest}; accepted: {wanted}")


def _shared(model: nn.Module) -> dict[str, list[str]]:
    """Return the other names of layers in several places of a model."""
    found = places(model).items()
    names = ([plain_name(name, model) for name in group] for module, group in found if isinstance(module, LDULayer))
    return {first: others for first, *others in names if others}


def _record(layer: LDULayer) -> LayerRecord:
    matrix = weight_matrix(layer.base_layer)
    return LayerRecord(
        kind=layer.kind.name,
        shape=(int(matrix.shape[0]), int(matrix.shape[1])),
        base_dtype=dtype_name(matrix),
        base_sha256=fingerprint(matrix),
        lora_obstacle=lora_obstacle(layer.base_layer),
        options=layer.options,
    )


def _tensors(layer: LDULayer) -> dict[str, Tensor]:
    # This is the state that the layer loads from, with the pivots in their smallest type.
    tensors: dict[str, Tensor] = layer.adapter.state_dict()
    tensors["update_sketch"] = update_sketch(layer.factors, layer.delta)
    return {key: _copy(tensor) for key, tensor in tensors.items()}


def _warn_of_rounding(layer: LDULayer, stored: StoredLayer) -> None:
    """Warn if a saved update cannot be rebuilt.

    It is tried out where the last pivots are as small as rounding errors.
    """
    sizes = layer.factors.diagonal.abs()
    noise = torch.finfo(sizes.dtype).eps * max(stored.record.shape)
    if stored.record.options.basis != "ldu" or sizes.min() > noise * sizes.max():
        return
    try:
        stored.rebuild(weight_matrix(layer.base_layer), "error")
    except AdapterError as error:
        warnings.warn(f"saved, but load_adapter will refuse it: {error}", UserWarning, stacklevel=3)


def _warn_of_left_out(model: nn.Module, modules: Sequence[str]) -> None:
    """Warn of trained parameters that are not written.

    They were unfrozen after `inject`.
    """
    layers = [layer for _, layer in lowrank_layers(model)]
    if not any(layer.injected for layer in layers):
        return  # load_adapter freezes nothing, so that requires_grad says nothing
    written = [*(layer.adapter for layer in layers), *(plain_submodule(model, name) for name in modules)]
    held = {id(parameter) for module in written for parameter in module.parameters()}
    left_out = [
        plain_name(name, model)
        for name, parameter in model.named_parameters()
        if parameter.requires_grad and id(parameter) not in held
    ]
    if left_out:
        more = f" and {len(left_out) - _NAMED} more" if len(left_out) > _NAMED else ""
        warnings.warn(
            f"parameters that train are not saved: {', '.join(map(repr, left_out[:_NAMED]))}{more}; accepted: "
            "modules outside of LoLDU layers in modules_to_save, or requires_grad=False",
            UserWarning,
            stacklevel=3,
        )


def _copy(tensor: Tensor) -> Tensor:
    # A clone: a tensor may share its memory with another or have gaps in it, which the file format does not take.
    return tensor.detach().cpu().clone(memory_format=torch.contiguous_format)


def _whole_module(model: nn.Module, name: str) -> dict[str, Tensor]:
    try:
        module = plain_submodule(model, name)
    except AttributeError as error:
        raise ValueError(
            f"modules_to_save names {name!r}; the model ({type(model).__name__}) has no such module"
        ) from error
    if next(lowrank_layers(module), None) is not None:
        raise ValueError(f"modules_to_save names {name!r}, which has LoLDU layers; accepted: modules without any")
    layers = (plain_name(layer, model) for layer, _ in lowrank_layers(model))
    inside = next((layer for layer in layers if name.startswith(f"{layer}.")), None)
    if inside is not None:
        raise ValueError(f"modules_to_save names {name!r}, which is inside of LoLDU layer {inside!r}; accepted: others")
    state = {plain_name(key, module): value for key, value in module.state_dict().items()}
    other = next((key for key, value in state.items() if not isinstance(value, torch.Tensor)), None)
    if other is not None:
        raise ValueError(f"modules_to_save names {name!r}, whose state holds {other!r}, which is not a tensor")
    return {key: _copy(tensor) for key, tensor in state.items()}
