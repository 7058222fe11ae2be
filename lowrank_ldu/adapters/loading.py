"""Put an adapter into a model."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lowrank_ldu.adapters.errors import AdapterError
from lowrank_ldu.adapters.reading import read_adapter
from lowrank_ldu.nn.freezing import restore_trainable_on_error
from lowrank_ldu.nn.host import weight_matrix
from lowrank_ldu.nn.injection import replace_module
from lowrank_ldu.nn.kinds import kind_of
from lowrank_ldu.nn.layer import LoLDULayer

if TYPE_CHECKING:
    import os

    from torch import Tensor, nn

    from lowrank_ldu.adapters.file import AdapterFile, StoredLayer


def load_adapter(model: nn.Module, path: str | os.PathLike[str], *, force: bool = False) -> list[str]:
    """Put a saved adapter into the model it was trained on, in place.

    The factors are rebuilt from the stored pivots without a search, so that they are the same on every machine.

    Parameters
    ----------
    model : nn.Module
        The base model, without LoLDU layers where the adapter has some.
    path : path
        Folder that `save_adapter` wrote, or `save_pretrained` of a PEFT model with a `LolduConfig`.
    force : bool
        Accept base weights that are not those of training, such as a rounded or quantised copy, and warn of how far
        off they are. Nothing else is let pass.

    Returns
    -------
    list of str
        Qualified names of the layers that were replaced. Modules that were saved whole are loaded as well. Nothing is
        frozen or unfrozen beyond what `LoLDULayer` does to its own base layer.

    Raises
    ------
    AdapterError
        A file is missing, damaged or changed; a layer of the adapter is missing in the model, is of another kind or
        shape, or has another weight than in training. The model is then unchanged.
    """
    adapter = read_adapter(path)
    with restore_trainable_on_error(model):
        layers = {name: _build(model, stored, force=force) for name, stored in adapter.layers.items()}
        states = {name: _module_state(model, name, adapter) for name in adapter.module_names}
    # A base layer that stands under two names was saved once and is replaced twice.
    by_base: dict[nn.Module, LoLDULayer] = {layer.base_layer: layer for layer in layers.values()}
    for name, module in list(model.named_modules(remove_duplicate=False)):
        if module in by_base and not name.endswith(".base_layer"):
            replace_module(model, name, by_base[module])
    for name, state in states.items():
        model.get_submodule(name).load_state_dict(state)
    return list(layers)


def _build(model: nn.Module, stored: StoredLayer, *, force: bool) -> LoLDULayer:
    name = stored.name
    try:
        base_layer = model.get_submodule(name)
    except AttributeError as error:
        raise AdapterError(f"layer {name!r}: the model ({type(model).__name__}) has no such module") from error
    try:
        kind = kind_of(base_layer)
        matrix = weight_matrix(base_layer)
    except (TypeError, ValueError) as error:
        raise AdapterError(f"layer {name!r} is a {type(base_layer).__name__} in the model: {error}") from error
    if kind is not stored.kind:
        raise AdapterError(
            f"layer {name!r} is a {type(base_layer).__name__} in the model; accepted: kind {stored.kind.name!r}"
        )
    return LoLDULayer.of(base_layer, stored.bind(matrix, force=force))


def _module_state(model: nn.Module, name: str, adapter: AdapterFile) -> dict[str, Tensor]:
    """Return the state of a module that was saved whole, checked to fit."""
    try:
        expected = model.get_submodule(name).state_dict()
    except AttributeError as error:
        raise AdapterError(f"module {name!r}: the model ({type(model).__name__}) has no such module") from error
    held = {key.removeprefix(f"{name}."): tensor for key, tensor in adapter.module_tensors.items()}
    state = {key: held[key] for key in expected if key in held}
    for key, tensor in expected.items():
        found = tuple(state[key].shape) if key in state else None
        if found != tuple(tensor.shape):
            raise AdapterError(
                f"module {name!r}: {key} has shape {found} in the adapter; accepted: {tuple(tensor.shape)}"
            )
    return state
