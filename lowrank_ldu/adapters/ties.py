"""Compare the tied tensors of a model with those of training.

A model has a tied tensor under several names, as an embedding and an output layer that are one.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from lowrank_ldu.errors import AdapterError
from lowrank_ldu.nn.memory import Owners
from lowrank_ldu.nn.modules import plain_name

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from torch import Tensor, nn

# Name of the base layer inside of a layer with an adapter, here and in PEFT.
_BASE_LAYER = "base_layer"


def tied_tensors(model: nn.Module, names: Iterable[str]) -> dict[str, list[str]]:
    """Return the other names of tensors with several names.

    These are tensors of one model. Tensors that overlap in memory count as one.

    Parameters
    ----------
    model : nn.Module
    names : iterable of str
        Qualified names of parameters and buffers.

    Returns
    -------
    dict of str to list of str
        Tensors without another name are left out. Names are those of the model without adapters and wrappers.

    Examples
    --------
    >>> from torch import nn
    >>> model = nn.ModuleDict({"embedding": nn.Embedding(8, 4), "head": nn.Linear(4, 8, bias=False)})
    >>> model["head"].weight = model["embedding"].weight
    >>> tied_tensors(model, ["embedding.weight"])
    {'embedding.weight': ['head.weight']}
    """
    places: dict[str, Tensor] = {}
    for module_name, module in model.named_modules(remove_duplicate=False):
        own = module._parameters | module._buffers  # noqa: SLF001  # the public ones name a tensor once
        for key, tensor in own.items():
            if tensor is not None:
                parts = [part for part in plain_name(module_name, model).split(".") if part and part != _BASE_LAYER]
                places[".".join([*parts, key])] = tensor
    owners = Owners(places.items())
    others = {name: [each for each in owners.of(places[name]) if each != name] for name in names if name in places}
    return {name: found for name, found in others.items() if found}


def check_ties(model: nn.Module, state: Iterable[tuple[str, Tensor, Tensor]], trained: Mapping[str, list[str]]) -> None:
    """Refuse tensors with other ties than in training.

    Loading them would change the tied tensors, or leave them behind.

    Parameters
    ----------
    model : nn.Module
    state : iterable of (str, Tensor, Tensor)
        Name of each tensor, its place in the model, and the numbers for it.
    trained : mapping of str to list of str
        What `tied_tensors` gave of the model in training.

    Raises
    ------
    AdapterError
    """
    changed = [name for name, place, tensor in state if not torch.equal(place, tensor.to(place))]
    present = tied_tensors(model, changed)
    for name in changed:
        now, then = present.get(name, []), trained.get(name, [])
        other = next((each for each in now if each not in then), None)
        if other is not None:
            raise AdapterError(
                f"tensor {name!r} is tied to {other!r} in the model, and was not when it was trained; accepted: a "
                "model in which they are two tensors"
            )
        other = next((each for each in then if each not in now), None)
        if other is not None:
            raise AdapterError(
                f"tensor {name!r} was tied to {other!r} when it was trained, and is not in the model; accepted: a "
                "model in which they are one tensor"
            )
