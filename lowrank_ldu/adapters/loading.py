"""Read an adapter's folder, and put the adapter into a model.

This package or PEFT wrote the folder.
"""

from __future__ import annotations

import os
from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch import nn

from lowrank_ldu.adapters.bases import find_bases_of
from lowrank_ldu.adapters.input_files import checked_model_and_path, checked_path
from lowrank_ldu.adapters.native_folder import read_native
from lowrank_ldu.adapters.peft_folder import PEFT_CONFIG, read_peft
from lowrank_ldu.adapters.ties import check_ties
from lowrank_ldu.checkpoints.adapter_folder import CONFIG_FILE
from lowrank_ldu.errors import AdapterError
from lowrank_ldu.nn.base_identity import warn_of
from lowrank_ldu.nn.calls import observe
from lowrank_ldu.nn.host import AdapterHost
from lowrank_ldu.nn.injection import outside_inference_mode, replace_module, restore_trainable_on_error
from lowrank_ldu.nn.kinds import kind_of
from lowrank_ldu.nn.layer import LDULayer
from lowrank_ldu.nn.modules import plain_name, plain_submodule, unwrapped
from lowrank_ldu.nn.weight_reads import reader_of
from lowrank_ldu.nn.weights import weight_matrix
from lowrank_ldu.validation import check_flag, dtype_name

if TYPE_CHECKING:
    from torch import Tensor

    from lowrank_ldu.adapters.stored_layer import AdapterFile, StoredLayer
    from lowrank_ldu.nn.base_identity import Deviation
    from lowrank_ldu.nn.basis import FittedBasis


def read_adapter(path: str | os.PathLike[str]) -> AdapterFile:
    """Read the folder of a saved adapter.

    `save_adapter` wrote it, or `save_pretrained` of a PEFT model with a `LolduConfig`.

    Parameters
    ----------
    path : path
        The folder.

    Returns
    -------
    AdapterFile

    Raises
    ------
    TypeError
        `path` is no path.
    AdapterError
        A file is missing, damaged or changed, or is not of such an adapter; or `path` is a file.
    """
    folder = checked_path(path)
    if os.path.isfile(folder):  # noqa: PTH113  # Path's raises where no file can have such a name
        parent = folder.absolute().parent
        raise AdapterError(f"{folder}: is a file; accepted: the folder of an adapter, such as {parent}")
    of_peft, native = (os.path.lexists(folder / name) for name in (PEFT_CONFIG, CONFIG_FILE))
    if of_peft and native:
        raise AdapterError(f"{folder}: holds two adapters, {PEFT_CONFIG} and {CONFIG_FILE}; accepted: a folder of one")
    adapter = read_peft(folder) if of_peft else read_native(folder)
    return replace(adapter, path=folder)


def load_adapter(
    model: nn.Module,
    path: str | os.PathLike[str],
    *,
    accept_other_base: bool = False,
    basis: FittedBasis | str | os.PathLike[str] | None = None,
) -> list[str]:
    """Put a saved adapter into its model, in place.

    It is the model that the adapter was trained on. The factors are rebuilt from the stored pivots without a search, so
    that they are the same on every machine.

    Parameters
    ----------
    model : nn.Module
        The base model, without LoLDU layers where the adapter has some.
    path : path
        Folder that `save_adapter` wrote, or `save_pretrained` of a PEFT model with a `LolduConfig`.
    accept_other_base : bool
        Accept base weights that are not those of training, such as a rounded or quantized copy, and updates that do
        not come out as they were trained; warn once, of how far off the worst layer is. Nothing else is let pass.
    basis : FittedBasis or path, optional
        The fitted basis that the factors are of, or its file. If not given, it is looked up by its digest among the
        bases of this process (`lowrank_ldu.nn.use_basis`), at the path that the adapter names, and beside the folder.

    Returns
    -------
    list of str
        Qualified names of the layers that were replaced. Modules that were saved whole are loaded as well. Nothing is
        frozen or unfrozen beyond what `LDULayer` does to its own base layer.

    Raises
    ------
    TypeError
        `model` is no module, `path` no path, `accept_other_base` no bool or `basis` no basis and no path.
    AdapterError
        The fitted basis of the adapter is not found (the message has its digest), or was fitted beside another weight.
        A file is missing, damaged or changed; a layer of the adapter is missing in the model, has an adapter already,
        is of another kind or shape, or has another weight than in training; an update does not come out as it was
        trained; a tensor of a module that was saved whole is tied to others than in training. The model is then
        unchanged.
    """
    path, accept_other_base = checked_model_and_path(model, path), check_flag(accept_other_base, "accept_other_base")
    model = unwrapped(model)
    with outside_inference_mode():
        adapter = read_adapter(path)
    find_bases_of(adapter, basis)
    deviations: list[Deviation] = []
    with outside_inference_mode(), restore_trainable_on_error(model):
        layers = {
            name: _build(model, stored, deviations, accept_other_base=accept_other_base)
            for name, stored in adapter.layers.items()
        }
        state = _whole_state(model, adapter)
        if adapter.tied is not None:
            check_ties(model, state, adapter.tied)
        # This comes before any change, since a warning may be an error to the caller.
        warn_of(deviations)
    # All checks have passed: from here on the model is changed.
    with torch.no_grad():
        for _, place, tensor in state:
            place.copy_(tensor)
    # A base layer that stands under two names was saved once and is replaced twice.
    by_base: dict[nn.Module, LDULayer] = {layer.base_layer: layer for layer in layers.values()}
    for name, module in list(model.named_modules(remove_duplicate=False)):
        if module in by_base:
            replace_module(model, name, by_base[module])
    observe(model)
    return list(layers)


def _build(model: nn.Module, stored: StoredLayer, deviations: list[Deviation], *, accept_other_base: bool) -> LDULayer:
    name = stored.name
    try:
        base_layer = plain_submodule(model, name)
    except AttributeError as error:
        raise AdapterError(f"layer {name!r}: the model ({type(model).__name__}) has no such module") from error
    if isinstance(base_layer, AdapterHost):
        raise AdapterError(f"layer {name!r} has an adapter already; accepted: the base model, without one there")
    reader = reader_of(model, name)
    if reader is not None:
        raise AdapterError(
            f"layer {name!r}: {reader} reads its weight without calling it, so that an adapter would have no effect "
            "there; accepted: layers that are called"
        )
    try:
        kind = kind_of(base_layer)
        matrix = weight_matrix(base_layer)
    except (TypeError, ValueError) as error:
        raise AdapterError(f"layer {name!r} of the model: {error}") from error
    if kind is not stored.kind:
        raise AdapterError(
            f"layer {name!r} is a {type(base_layer).__name__} in the model; accepted: kind {stored.kind.name!r}"
        )
    held, deviation = stored.rebuild(matrix, "warn" if accept_other_base else "error")
    if deviation is not None:
        deviations.append(deviation)
    return LDULayer.of(base_layer, held)


def _whole_state(model: nn.Module, adapter: AdapterFile) -> list[tuple[str, Tensor, Tensor]]:
    """Return the wholly saved tensors with their places in the model.

    Each comes with its name, its place and its numbers, and is checked to fit.
    """
    held = adapter.module_tensors
    places = {plain_name(key, model): place for key, place in model.state_dict(keep_vars=True).items()}
    for name in adapter.module_names:
        try:
            module = plain_submodule(model, name)
        except AttributeError as error:
            raise AdapterError(f"module {name!r}: the model ({type(model).__name__}) has no such module") from error
        expected = (plain_name(key, module) for key in module.state_dict())
        missing = sorted(key for key in expected if f"{name}.{key}" not in held)
        if missing:
            raise AdapterError(f"module {name!r}: the adapter holds no {missing[0]}; accepted: all of its state")
    for name, tensor in sorted(held.items()):
        place = places.get(name)
        if not isinstance(place, torch.Tensor):
            raise AdapterError(
                f"tensor {name!r} of the adapter: the model ({type(model).__name__}) has none of its name"
            )
        if place.shape != tensor.shape:
            raise AdapterError(
                f"tensor {name!r} has shape {tuple(tensor.shape)} in the adapter; accepted: {tuple(place.shape)}"
            )
        if place.device.type == "meta":
            raise AdapterError(f"tensor {name!r} is on the meta device in the model; accepted: a model with data")
        if _kind_of_number(place) != _kind_of_number(tensor):
            raise AdapterError(
                f"tensor {name!r} is {dtype_name(tensor)} in the adapter and {dtype_name(place)} in the model; "
                "accepted: the same kind of numbers"
            )
        # Buffers may be infinite: masks are. Numbers become float64, since torch cannot check those of 8 bits.
        cast = tensor.to(place.dtype)
        cast = cast.double() if cast.is_floating_point() else cast
        if isinstance(place, nn.Parameter) and not bool(cast.isfinite().all()):
            raise AdapterError(
                f"tensor {name!r} is not finite in {dtype_name(place)}, as the model has it; accepted: numbers that fit"
            )
    return [(name, places[name], tensor) for name, tensor in held.items()]


def _kind_of_number(tensor: Tensor) -> str:
    if tensor.is_complex():
        return "complex"
    return "floating" if tensor.is_floating_point() else "integer"
