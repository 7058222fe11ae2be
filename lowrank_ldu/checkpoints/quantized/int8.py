"""Read int8 weights with a scale for each output.

They come from LLM.int8 of bitsandbytes and from compressed-tensors.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from lowrank_ldu.checkpoints.quantized.weight import FLOATS, QuantizedWeight, Stored, quantized_weight, refused

if TYPE_CHECKING:
    import torch

    from lowrank_ldu.checkpoints.reader import TensorInfo

_LARGEST = 127
_SUFFIX = ".weight"


def find_int8(info: TensorInfo, stored: Stored) -> QuantizedWeight | None:
    """Return an int8 matrix (out, in) with its scales.

    None if nothing beside the tensor is called as scales are.

    Parameters
    ----------
    info : TensorInfo
        A stored tensor.
    stored : Stored

    Returns
    -------
    QuantizedWeight or None
        ``LAYER.weight`` with ``LAYER.SCB``, the largest magnitudes of the outputs (out,); or ``NAME`` with
        ``NAME_scale``: one number, one for each output, or one for each of equal groups of inputs, (out, groups), and
        with ``NAME_zero_point`` of the same shape, which is subtracted before.
    """
    if info.dtype != "int8" or len(info.shape) != 2 or 0 in info.shape:
        return None
    stem = info.name.removesuffix(_SUFFIX)
    if stem != info.name and f"{stem}.SCB" in stored.tensors:
        return _find_llm_int8(info, stem, stored)
    if f"{info.name}_scale" in stored.tensors:
        return _find_scaled(info, stored)
    return None


def _find_llm_int8(info: TensorInfo, stem: str, stored: Stored) -> QuantizedWeight:
    roles = stored.roles({"weight": info.name, "maxima": f"{stem}.SCB", "layout": f"{stem}.weight_format"})
    scheme = "bitsandbytes LLM.int8"
    maxima = stored.tensors[roles["maxima"]]
    if maxima.dtype not in FLOATS or maxima.shape not in {(info.shape[0],), (info.shape[0], 1)}:
        problem = f"{maxima.name!r} is {maxima.dtype} of shape {maxima.shape}, of {info.shape[0]} outputs"
        return refused(info, roles, scheme, problem)
    if "layout" in roles:
        layout = stored.description(roles["layout"])
        if layout is None or layout.numel() != 1 or int(layout) != 0:
            return refused(info, roles, scheme, f"{roles['layout']!r} is not 0: rows are not one after another")
    return quantized_weight(stored, info, roles, _times_maxima, scheme=scheme, shape=info.shape)


def _find_scaled(info: TensorInfo, stored: Stored) -> QuantizedWeight:
    roles = stored.roles({"weight": info.name, "scale": f"{info.name}_scale", "zero_point": f"{info.name}_zero_point"})
    scale = stored.tensors[roles["scale"]]
    groups = _groups(scale.shape, info.shape)
    if scale.dtype not in FLOATS or groups is None:
        problem = f"{scale.name!r} is {scale.dtype} of shape {scale.shape}, which fits no rule for {info.shape}"
        return refused(info, roles, "int8", problem)
    if "zero_point" in roles:
        zero = stored.tensors[roles["zero_point"]]
        if zero.dtype != "int8" or zero.shape != scale.shape:
            problem = f"{zero.name!r} is {zero.dtype} of shape {zero.shape}; accepted: int8 of shape {scale.shape}"
            return refused(info, roles, "int8", problem)
    return quantized_weight(stored, info, roles, partial(times_groups, groups=groups), scheme="int8", shape=info.shape)


def _groups(scale: tuple[int, ...], values: tuple[int, ...]) -> tuple[int, int] | None:
    """Return the numbers of groups of outputs and inputs.

    Each group has one scale.
    """
    out, inputs = values
    if scale in {(), (1,), (1, 1)}:
        return 1, 1
    if scale == (out,):
        return out, 1
    return (out, scale[1]) if len(scale) == 2 and scale[0] == out and scale[1] and inputs % scale[1] == 0 else None


def times_groups(
    weight: torch.Tensor, scale: torch.Tensor, zero_point: torch.Tensor | None = None, *, groups: tuple[int, int]
) -> torch.Tensor:
    """Return the dequantized matrix (out, in), float32.

    Values are the integers, less their zeros, times their scales; `groups` counts by outputs and inputs.
    """
    out, inputs = weight.shape
    values = weight.float().reshape(out, groups[1], inputs // groups[1])
    if zero_point is not None:
        values -= zero_point.float().reshape(*groups, 1)
    values *= scale.float().reshape(*groups, 1)
    return values.reshape(out, inputs)


def _times_maxima(weight: torch.Tensor, maxima: torch.Tensor, **_layout: torch.Tensor) -> torch.Tensor:
    return weight.float().mul_(maxima.float().reshape(-1, 1) / _LARGEST)
