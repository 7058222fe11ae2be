"""Weights that are stored quantised: told by their class, and read as the numbers that they stand for."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

from lowrank_ldu.validation import dtype_name

if TYPE_CHECKING:
    from torch import Tensor, nn

# Told by name, so that neither library is imported for it: whoever has such a module has the library.
_BITSANDBYTES_4, _BITSANDBYTES_8 = "Params4bit", "Int8Params"
_TORCHAO = "TorchAOBaseTensor"
_HQQ = "HQQLinear"

# The largest integer of bitsandbytes' symmetric 8-bit rows.
_INT8_LIMIT = 127.0


def is_quantized(module: nn.Module) -> bool:
    """Whether a module's weight is stored quantised, by bitsandbytes, torchao or HQQ."""
    return _format_of(module) is not None


def dense_weight(module: nn.Module) -> Tensor:
    """Return a module's weight as floating numbers, in its logical shape.

    Parameters
    ----------
    module : nn.Module
        With a floating weight, or one that bitsandbytes (8 or 4 bits), torchao or HQQ quantised.

    Returns
    -------
    Tensor
        The weight itself, without gradient; a new tensor where it had to be dequantised, in the dtype that its library
        gives, float32 for bitsandbytes' 8 bits, which keep none.

    Raises
    ------
    TypeError
        The weight is of integers, or of 8-bit floating numbers, whose scale is not known.

    Examples
    --------
    >>> import torch
    >>> linear = torch.nn.Linear(2, 3)
    >>> dense_weight(linear).data_ptr() == linear.weight.data_ptr()
    True
    """
    kind, base = _format_of(module), cast("Any", module)
    if kind == _HQQ:
        return base.dequantize()  # type: ignore[no-any-return]
    weight: Tensor = base.weight.detach()
    if kind == _BITSANDBYTES_4:
        from bitsandbytes.functional import dequantize_4bit  # noqa: PLC0415

        return dequantize_4bit(base.weight.data, base.weight.quant_state)
    if kind == _BITSANDBYTES_8:
        return weight.float() * (_row_scales(base) / _INT8_LIMIT)[:, None].to(weight.device)
    if kind == _TORCHAO:
        return weight.dequantize()
    if not weight.is_floating_point() or weight.dtype.itemsize == 1:
        raise TypeError(
            f"the weight of a {type(module).__name__} is {dtype_name(weight)}, which says nothing of its scale; "
            "accepted: floating numbers of 16 bits or more, or weights quantised by bitsandbytes, torchao or HQQ"
        )
    return weight


def _format_of(module: nn.Module) -> str | None:
    if any(kind.__name__ == _HQQ for kind in type(module).__mro__):
        return _HQQ
    weight = getattr(module, "weight", None)
    for kind in type(weight).__mro__:
        # A parameter of theirs that is floating yet has not been quantised: that happens on the way to its device.
        if kind.__name__ in {_BITSANDBYTES_4, _BITSANDBYTES_8} and kind.__module__.startswith("bitsandbytes"):
            return None if weight.is_floating_point() else kind.__name__  # type: ignore[union-attr]
        if kind.__name__ == _TORCHAO and kind.__module__.startswith("torchao"):
            return _TORCHAO
    return None


def _row_scales(module: nn.Module) -> Tensor:
    """Return the largest magnitude of each row, which moves from the weight to the layer's state in the first call."""
    for holder in (module.weight, module.state):
        scales: Tensor | None = getattr(holder, "SCB", None)
        if scales is not None:
            return scales.float()
    raise TypeError(f"the 8-bit weight of a {type(module).__name__} has no scales; accepted: one that was quantised")
