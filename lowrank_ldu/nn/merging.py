"""Merge and unmerge a whole model, or unload its adapters.

Unloading leaves plain layers behind.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from lowrank_ldu.nn.calls import unwatch, warn_of_passed_by
from lowrank_ldu.nn.injection import lowrank_layers, replace_module
from lowrank_ldu.nn.layer import LDULayer
from lowrank_ldu.nn.modules import check_model
from lowrank_ldu.nn.weights import check_untied
from lowrank_ldu.validation import check_flag

if TYPE_CHECKING:
    from torch import nn


def merge(model: nn.Module, *, keep_base: bool = True) -> None:
    """Merge every LoLDU layer of `model` (`LDULayer.merge`).

    Raises
    ------
    RuntimeError
        A layer is merged already, or its weight is tied to another module's.
    TypeError
        A weight is quantized, or is computed at each call (parametrized, weight-normed, pruned).
    OverflowError, RuntimeError
        A merged weight is not finite in its dtype, or a merged layer, tried out where its base has hooks or a forward
        of its own, does not compute what it should. The layers before it are merged if `keep_base` is False.

    In every other case no weight has been changed; the message names the layer.

    Warns
    -----
    UserWarning
        The model has been called, and never called one of its layers, whose adapter had no effect.
    """
    check_model(model)
    keep_base = check_flag(keep_base, "keep_base")
    _check_mergeable(model)
    warn_of_passed_by(model)
    layers = list(lowrank_layers(model))
    for name, layer in layers:
        if layer.merged:
            raise RuntimeError(f"layer {name!r} is merged already; accepted: one merge, then unmerge")
    done: list[LDULayer] = []
    try:
        for name, layer in layers:
            _merge_layer(name, layer, keep_base=keep_base)
            done.append(layer)
    except BaseException:
        for layer in done if keep_base else ():
            layer.unmerge()
        raise


def _merge_layer(name: str, layer: LDULayer, *, keep_base: bool) -> None:
    try:
        layer.merge(keep_base=keep_base)
    except (TypeError, OverflowError, RuntimeError) as error:
        raise type(error)(f"layer {name!r}: {error}") from error


def _check_mergeable(model: nn.Module) -> None:
    """Refuse a model with a layer that cannot be merged.

    This comes before anything is changed.
    """
    layers = dict(lowrank_layers(model))
    check_untied(model, {name: layer.base_layer for name, layer in layers.items()})
    for name, layer in layers.items():
        try:
            layer.check_mergeable()
        except (TypeError, RuntimeError) as error:
            raise type(error)(f"layer {name!r}: {error}") from error


def unmerge(model: nn.Module) -> None:
    """Restore the base weights of every merged layer, bit for bit.

    It is `LDULayer.unmerge` for every LoLDU layer of `model`.
    """
    for _, layer in lowrank_layers(model):
        if layer.merged:
            layer.unmerge()


def unload(model: nn.Module, *, merged: bool = True) -> None:
    """Replace every LoLDU layer by its base layer, in place.

    The base layers of `model` are then plain again.

    Parameters
    ----------
    model : nn.Module
    merged : bool
        True: with the update in its weight, which takes no copy of the base. False: as it was before `inject`.

    Raises
    ------
    RuntimeError, TypeError, OverflowError
        As for `merge`; also RuntimeError if a layer was merged without keeping the base and `merged` is False.

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
    check_model(model)
    if check_flag(merged, "merged"):
        _check_mergeable(model)
        warn_of_passed_by(model)
    # A layer that stands under two names is merged once and replaced twice.
    for name, module in list(model.named_modules(remove_duplicate=False)):
        if not isinstance(module, LDULayer):
            continue
        if merged and not module.merged:
            _merge_layer(name, module, keep_base=False)
        elif not merged and module.merged:
            module.unmerge()
        replace_module(model, name, module.base_layer)
    unwatch(model)
