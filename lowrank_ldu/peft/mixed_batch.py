"""A batch whose rows use different adapters: one product with U, one diagonal for each row, one product with P L."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from lowrank_ldu.nn.diagonal import delta_of, stack_states
from lowrank_ldu.nn.forward import layer_output, output_with_updates
from lowrank_ldu.nn.update import Update

if TYPE_CHECKING:
    from torch import Tensor

    from lowrank_ldu.peft.layer import LolduLayer


def mixed_output(layer: LolduLayer, x: Tensor, adapter_names: list[str], *args: Any, **kwargs: Any) -> Tensor:
    """Return the base layer's output for x plus, in each row, the update of that row's adapter.

    Parameters
    ----------
    layer : LolduLayer
    x : Tensor, shape (B, ...)
        The base layer's input.
    adapter_names : list of str, length B
        Adapters; rows of "__base__", and of adapters that this layer does not have, stay as they are.
    *args, **kwargs
        Further arguments of the base layer.

    Notes
    -----
    Adapters that share their factors, which is all of them where rank, basis and pivoting are the same, cost what one
    of them costs, but for B r numbers.
    """
    # Looked up once: there may be thousands of rows, and a module's attributes are slow to find.
    adapters, terms = layer.loldu_adapter, layer.loldu_terms
    unique = [name for name in dict.fromkeys(adapter_names) if name in adapters]
    for name in layer.unsettled(unique):
        layer.diagonal(name)
    groups: dict[str, list[str]] = {}
    for name in unique:
        groups.setdefault(terms[name], []).append(name)
    base = layer.get_base_layer()
    if len(groups) == 1 and base is layer.base_layer and not (args or kwargs):
        deltas, index = _diagonals(layer, unique, adapter_names)
        return layer_output(base, layer.kind, x, layer.factors_of(unique[0]), deltas, plan=layer.plan, index=index)
    if groups:
        layer.check_unfused()
    updates = [
        Update(layer.factors_of(names[0]), *_diagonals(layer, names, adapter_names)) for names in groups.values()
    ]
    y: Tensor = output_with_updates(layer.base_layer, base, layer.kind, updates, x, args, kwargs)
    return y


def _diagonals(layer: LolduLayer, names: list[str], adapter_names: list[str]) -> tuple[Tensor, Tensor]:
    """Return the diagonals of adapters that share their factors, and for each row of the batch which of them it uses.

    The last diagonal is zero: that of rows that use none.
    """
    states = stack_states([layer.loldu_adapter[name] for name in names])  # type: ignore[misc]
    deltas = delta_of(states, layer.factors_of(names[0]).frame)
    position = {name: index for index, name in enumerate(names)}
    index = torch.tensor([position.get(name, len(names)) for name in adapter_names], device=deltas.device)
    return torch.cat([deltas, deltas.new_zeros(1, deltas.shape[1])]), index
