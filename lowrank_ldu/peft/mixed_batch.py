"""A batch whose rows use different adapters: one product with U, one diagonal for each row, one product with P L."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from lowrank_ldu.nn.diagonal import delta_of, stack_states
from lowrank_ldu.nn.functional import updated_output

if TYPE_CHECKING:
    from torch import Tensor

    from lowrank_ldu.peft.layer import LolduLayer


def mixed_output(layer: LolduLayer, x: Tensor, y: Tensor, adapter_names: list[str]) -> Tensor:
    """Return the base layer's output y plus, in each row, the update of that row's adapter.

    Parameters
    ----------
    layer : LolduLayer
    x, y : Tensor, shapes (B, ...)
        The base layer's input and output.
    adapter_names : list of str, length B
        Adapters; rows of "__base__", and of adapters that this layer does not have, stay as they are.

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
    for names in groups.values():
        factors = layer.factors_of(names[0])
        position = {name: index for index, name in enumerate(names)}
        rows = [row for row, name in enumerate(adapter_names) if name in position]
        which = torch.tensor([position[adapter_names[row]] for row in rows], device=y.device)
        states = stack_states([adapters[name] for name in names])  # type: ignore[misc]
        deltas = delta_of(states, factors.frame)[which]
        base = layer.get_base_layer()
        if len(rows) == len(adapter_names):
            y = updated_output(base, layer.kind, x, y, factors, deltas)
        else:
            chosen = torch.tensor(rows, device=y.device)
            changed = updated_output(base, layer.kind, x[chosen], y[chosen], factors, deltas)
            y = y.index_copy(0, chosen, changed)
    return y
