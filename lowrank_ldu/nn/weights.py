"""Read the weight of a layer, and find its other users.

It is read as it is stored, or as a matrix; the users are other modules.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from lowrank_ldu.nn.kinds import kind_of
from lowrank_ldu.nn.kinds.own_forward import refresh_weight
from lowrank_ldu.nn.memory import Owners
from lowrank_ldu.nn.offloading import onloaded
from lowrank_ldu.nn.quantized import dense_weight

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from torch import Tensor, nn


def stored_weight(base_layer: nn.Module) -> nn.Parameter:
    """Return a layer's weight as it is stored."""
    # HQQ's layers have no `weight`, but for the packed integers.
    return base_layer.weight if hasattr(base_layer, "weight") else base_layer.W_q  # type: ignore[return-value]


def weight_matrix(base_layer: nn.Module) -> Tensor:
    """Return a layer's weight as W (m, n).

    It is dequantized where it is stored quantized, and in memory if it is offloaded.

    Raises
    ------
    TypeError
        The layer or its weight is of a kind that cannot be factored.
    """
    kind = kind_of(base_layer)
    with onloaded(base_layer):
        with torch.no_grad():
            refresh_weight(base_layer)
        return kind.as_matrix(dense_weight(base_layer))


def whole_matrix(base_layer: nn.Module) -> Tensor:
    """Return a layer's weight as `weight_matrix` does, gathered.

    Where fully_shard has divided it over processes, all of them have to come here.
    """
    matrix = weight_matrix(base_layer)
    return matrix.full_tensor() if hasattr(matrix, "full_tensor") else matrix


def check_untied(model: nn.Module, base_layers: Mapping[str, nn.Module]) -> None:
    """Refuse to write an update into a tied weight.

    Another module that uses the weight would change with it.

    Parameters
    ----------
    model : nn.Module
    base_layers : mapping of str to nn.Module
        Qualified name of each layer with adapters to its base layer.

    Raises
    ------
    RuntimeError
        Another module has the same parameter, or another parameter or buffer in the same memory.
    """
    for name, users in users_of_weights(model, base_layers):
        others = [owner or type(module).__name__ for owner, module in users if module is not base_layers[name]]
        if others:
            raise RuntimeError(
                f"the weight of layer {name!r} is tied to {', '.join(map(repr, others))}, which merging would change; "
                "accepted: weights of their own (give one module a clone)"
            )


def users_of_weights(
    model: nn.Module, base_layers: Mapping[str, nn.Module]
) -> Iterator[tuple[str, list[tuple[str, nn.Module]]]]:
    """Yield each layer's name with the users of its weight.

    They are the names and modules of all that have some of the weight's memory.
    """
    owners = Owners(
        ((name, module), tensor)
        for name, module in model.named_modules()
        # parameters() and buffers() leave out repeated tensors.
        for tensor in (*module._parameters.values(), *module._buffers.values())  # noqa: SLF001
        if tensor is not None
    )
    for name, base_layer in base_layers.items():
        weight = stored_weight(base_layer)
        # The weight of a parametrization may be a view of the tensor that it is computed from, which is no tie.
        own = any(weight is parameter for parameter in base_layer._parameters.values())  # noqa: SLF001
        yield name, list(dict.fromkeys(owners.of(weight))) if own else []
