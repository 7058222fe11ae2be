"""Merge the updates of a whole model, take them out again, or leave plain layers behind."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lowrank_ldu.nn.injection import lowrank_layers, replace_module
from lowrank_ldu.nn.linear import LoLDULinear

if TYPE_CHECKING:
    from torch import nn


def merge(model: nn.Module, *, keep_base: bool = True) -> None:
    """Merge every LoLDU layer of `model` (`LoLDULinear.merge`).

    Raises
    ------
    RuntimeError
        A layer is merged already; none has been changed then.
    """
    layers = list(lowrank_layers(model))
    for name, layer in layers:
        if layer.merged:
            raise RuntimeError(f"layer {name!r} is merged already; accepted: one merge, then unmerge")
    for _, layer in layers:
        layer.merge(keep_base=keep_base)


def unmerge(model: nn.Module) -> None:
    """Restore the base weights of every merged LoLDU layer of `model`, bit for bit (`LoLDULinear.unmerge`)."""
    for _, layer in lowrank_layers(model):
        if layer.merged:
            layer.unmerge()


def unload(model: nn.Module, *, merged: bool = True) -> None:
    """Replace every LoLDU layer of `model` by its plain nn.Linear, in place.

    Parameters
    ----------
    model : nn.Module
    merged : bool
        True: with the update in its weight, which takes no copy of the base. False: as it was before `inject`.

    Examples
    --------
    >>> from torch import nn
    >>> from lowrank_ldu.nn import inject
    >>> model = nn.Sequential(nn.Linear(4, 4))
    >>> names = inject(model, ["0"], rank=2)
    >>> unload(model)
    >>> type(model[0]).__name__
    'Linear'
    """
    # A layer that stands under two names is merged once and replaced twice.
    for name, module in list(model.named_modules(remove_duplicate=False)):
        if not isinstance(module, LoLDULinear):
            continue
        if merged and not module.merged:
            module.merge(keep_base=False)
        elif not merged and module.merged:
            module.unmerge()
        replace_module(model, name, module.linear)
