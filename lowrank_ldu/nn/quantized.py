"""Read weights that are stored quantized.

They are told by their class, and read as the numbers that they stand for.
"""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor
from torch.nn.functional import linear

from lowrank_ldu.validation import dtype_name

if TYPE_CHECKING:
    from torch import nn

# Classes by name, so that no library is imported for them. The library is there where there is such a module.
_BITSANDBYTES_4, _BITSANDBYTES_8 = "Params4bit", "Int8Params"
_TORCHAO, _TORCHAO_NF4 = "TorchAOBaseTensor", "NF4Tensor"
_HQQ = "HQQLinear"
_LIBRARIES = {
    _BITSANDBYTES_4: "bitsandbytes",
    _BITSANDBYTES_8: "bitsandbytes",
    _TORCHAO: "torchao",
    _TORCHAO_NF4: "torchao",
}

# The largest integer of bitsandbytes' symmetric 8-bit rows.
_INT8_LIMIT = 127.0

_ACCEPTED = "floating numbers of 16 bits or more, or weights quantized by bitsandbytes, torchao or HQQ"


def is_quantized(module: nn.Module) -> bool:
    """Return whether a module's weight is stored quantized.

    bitsandbytes, torchao or HQQ has quantized it.
    """
    return _format_of(module) is not None


def dense_weight(module: nn.Module) -> Tensor:
    """Return a module's weight as floating numbers, in its logical shape.

    Parameters
    ----------
    module : nn.Module
        With a floating weight, or one that bitsandbytes (8 or 4 bits), torchao or HQQ quantized.

    Returns
    -------
    Tensor
        The weight itself, without gradient; a new tensor where it had to be dequantized, in the dtype that its library
        gives, float32 for bitsandbytes' 8 bits, which keep none.

    Raises
    ------
    TypeError
        There is no weight, or it is of integers, of 8-bit floating numbers, whose scale is not known, or of a tensor
        class that is not known.

    Examples
    --------
    >>> layer = torch.nn.Linear(2, 3)
    >>> dense_weight(layer).data_ptr() == layer.weight.data_ptr()
    True
    """
    kind, base = _format_of(module), cast("Any", module)
    with torch.no_grad():
        if kind == _HQQ:
            return cast("Tensor", base.dequantize())
        if kind == _BITSANDBYTES_4:
            return _dequantize_4bit(base)
        if kind == _BITSANDBYTES_8:
            return _dequantize_8bit(base)
        if kind == _TORCHAO_NF4:
            return cast("Tensor", base.weight.get_original_weight())
        if kind == _TORCHAO:
            return _dequantize_torchao(base)
    return _plain_weight(module)


def _format_of(module: nn.Module) -> str | None:
    if any(kind.__name__ == _HQQ and _library_of(kind) == "hqq" for kind in type(module).__mro__):
        return _HQQ
    weight = getattr(module, "weight", None)
    if not isinstance(weight, Tensor):
        return None
    for kind in type(weight).__mro__:
        if _LIBRARIES.get(kind.__name__) == _library_of(kind):
            return None if _awaits_quantization(module, weight, kind.__name__) else kind.__name__
    return None


def _library_of(kind: type) -> str:
    return kind.__module__.partition(".")[0]


def _awaits_quantization(module: nn.Module, weight: Tensor, kind: str) -> bool:
    """Return whether a parameter is yet to be quantized.

    bitsandbytes quantizes its parameters on the way to their device; before that they hold their numbers. The dtype
    alone does not tell: with bnb_4bit_quant_storage, as FSDP needs it, 4 bits are stored as bfloat16.
    """
    if kind == _BITSANDBYTES_4:
        return weight.is_floating_point() and _quant_state(module) is None
    return kind == _BITSANDBYTES_8 and weight.is_floating_point()


def _quant_state(module: Any) -> Any:
    """Return the quantization state of 4-bit codes.

    FSDP strips it off the weight but not off the layer.
    """
    state = getattr(module.weight, "quant_state", None)
    return getattr(module, "quant_state", None) if state is None else state


def _dequantize_4bit(module: Any) -> Tensor:
    from bitsandbytes import functional  # noqa: PLC0415

    codes, state = module.weight.data, _quant_state(module)
    if state is None:
        raise TypeError(
            f"the 4-bit weight of a {type(module).__name__} has no quant_state; accepted: one that was quantized"
        )
    if getattr(state, "packing_format_for_cpu", False):
        # On CPUs with AVX512-BF16 the first inference reorders codes and scales, which dequantize_4bit then misreads.
        # The inverse that bitsandbytes has restores the codes, but no plain scales, and quantizes double ones again.
        scales = state.absmax.T.reshape(-1).float()
        state = copy.copy(state)
        state.original_nested = False
        codes, state = functional._convert_weight_packed_for_cpu_inverse(codes, state)  # noqa: SLF001
        state.absmax = scales
    return functional.dequantize_4bit(codes, state)


def _dequantize_8bit(module: Any) -> Tensor:
    codes: Tensor = module.weight.detach()
    return codes.float() * (_row_scales(module) / _INT8_LIMIT)[:, None].to(codes.device)


def _row_scales(module: Any) -> Tensor:
    """Return the largest magnitude of each row.

    These scales move from the weight to the layer's state in the first call.
    """
    for holder in (module.weight, getattr(module, "state", None)):
        scales: Tensor | None = getattr(holder, "SCB", None)
        if scales is not None:
            return scales.float()
    raise TypeError(f"the 8-bit weight of a {type(module).__name__} has no scales; accepted: one that was quantized")


def _dequantize_torchao(module: Any) -> Tensor:
    weight: Tensor = module.weight.detach()
    # Every tensor has the method, but that of torch's own class does not know torchao's formats.
    if type(weight).dequantize is not Tensor.dequantize:
        return weight.dequantize()
    try:
        # Formats in a kernel's own order can only be multiplied by. Products with the identity are exact.
        return linear(torch.eye(weight.shape[-1], dtype=weight.dtype, device=weight.device), weight).T.contiguous()
    except NotImplementedError as error:
        raise TypeError(
            f"the weight of a {type(module).__name__} is a {_class_name(weight)}, which can neither be dequantized nor "
            f"multiplied by; accepted: {_ACCEPTED}"
        ) from error


def _plain_weight(module: nn.Module) -> Tensor:
    weight = getattr(module, "weight", None)
    if not isinstance(weight, Tensor):
        raise TypeError(
            f"the weight of a {type(module).__name__} is of type {type(weight).__name__}; accepted: {_ACCEPTED}"
        )
    # A class that redefines operations may store anything. torch's own classes (DTensor) stand for plain numbers.
    if type(weight).__torch_dispatch__ != Tensor.__torch_dispatch__ and _library_of(type(weight)) != "torch":
        raise TypeError(
            f"the weight of a {type(module).__name__} is a {_class_name(weight)}, whose storage is not known; "
            f"accepted: {_ACCEPTED}"
        )
    if not weight.is_floating_point() or weight.dtype.itemsize == 1:
        raise TypeError(
            f"the weight of a {type(module).__name__} is {dtype_name(weight)}, which says nothing of its scale; "
            f"accepted: {_ACCEPTED}"
        )
    return weight.detach()


def _class_name(weight: Tensor) -> str:
    return f"{type(weight).__module__}.{type(weight).__qualname__}"
