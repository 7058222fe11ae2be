"""Read weights of compressed-tensors in pack-quantized form.

They are integers of up to eight bits packed along the inputs.
"""

from __future__ import annotations

import math
from functools import partial
from typing import TYPE_CHECKING

import torch

from lowrank_ldu.checkpoints.quantized.int8 import times_groups
from lowrank_ldu.checkpoints.quantized.packing import unpacked
from lowrank_ldu.checkpoints.quantized.weight import (
    FLOATS,
    INTEGERS,
    QuantizedWeight,
    Stored,
    missing,
    quantized_weight,
    refused,
)
from lowrank_ldu.errors import CheckpointError

if TYPE_CHECKING:
    from lowrank_ldu.checkpoints.reader import TensorInfo

_SUFFIX = "_packed"
_SCHEME = "pack-quantized"
_MOST_BITS = 8


def find_pack_quantized(info: TensorInfo, stored: Stored) -> QuantizedWeight | None:
    """Return a weight that compressed-tensors packed.

    None if the tensor is not called as its integers.

    Parameters
    ----------
    info : TensorInfo
        A stored tensor.
    stored : Stored

    Returns
    -------
    QuantizedWeight or None
        ``NAME`` (out, in) of ``NAME_packed``, (out, ceil(in * bits / 32)), ``NAME_scale``, (out, groups), and
        ``NAME_shape``, its two sizes; ``NAME_zero_point``, packed along the outputs, and ``NAME_g_idx``, the group of
        each input, where they are there.
    """
    if not info.name.endswith(f".weight{_SUFFIX}"):
        return None
    stem = info.name.removesuffix(_SUFFIX)
    names = {role: f"{stem}_{role}" for role in ("packed", "scale", "shape", "zero_point", "g_idx")}
    roles = stored.roles(names)
    problem = missing(roles, names, ("scale", "shape"))
    if problem is None and (info.dtype != "int32" or len(info.shape) != 2 or 0 in info.shape):
        problem = f"{info.name!r} is {info.dtype} of shape {info.shape}; accepted: int32, 2-D and not empty"
    if problem is not None:
        return refused(info, roles, _SCHEME, problem)
    shape = _sizes(stored.description(roles["shape"]))
    if shape is None or shape[0] != info.shape[0]:
        return refused(
            info, roles, _SCHEME, f"{roles['shape']!r} does not say the two sizes of {info.shape[0]} outputs"
        )
    widths = [bits for bits in range(1, _MOST_BITS + 1) if math.ceil(shape[1] * bits / 32) == info.shape[1]]
    if len(widths) != 1:
        return refused(
            info, roles, _SCHEME, f"{info.shape[1]} words for {shape[1]} inputs are of no width, or of several"
        )
    problem = _problem(roles, stored, shape, widths[0])
    if problem is not None:
        return refused(info, roles, _SCHEME, problem)
    dequantize = partial(_dequantized, bits=widths[0], inputs=shape[1])
    scheme = f"{_SCHEME} {widths[0]} bits"
    return quantized_weight(stored, info, roles, dequantize, scheme=scheme, shape=shape, name=stem)


def _sizes(stored: torch.Tensor | None) -> tuple[int, int] | None:
    if stored is None or stored.numel() != 2 or stored.dtype not in {torch.int32, torch.int64}:
        return None
    rows, columns = (int(size) for size in stored.reshape(-1))
    return (rows, columns) if rows > 0 and columns > 0 else None


def _problem(roles: dict[str, str], stored: Stored, shape: tuple[int, int], bits: int) -> str | None:
    tensors = {role: stored.tensors[name] for role, name in roles.items()}
    scale = tensors["scale"]
    out, inputs = shape
    if scale.dtype not in FLOATS or len(scale.shape) != 2 or scale.shape[0] != out or not scale.shape[1]:
        return f"{scale.name!r} is {scale.dtype} of shape {scale.shape}, of {out} outputs"
    groups = scale.shape[1]
    if "g_idx" in tensors:
        index = tensors["g_idx"]
        if index.dtype not in INTEGERS or index.shape != (inputs,):
            return f"{index.name!r} is {index.dtype} of shape {index.shape}, of {inputs} inputs"
    elif inputs % groups:
        return f"{inputs} inputs are no {groups} equal groups"
    if "zero_point" in tensors:
        zero, words = tensors["zero_point"], (math.ceil(out * bits / 32), groups)
        if zero.dtype != "int32" or zero.shape != words:
            return f"{zero.name!r} is {zero.dtype} of shape {zero.shape}; accepted: int32 of shape {words}"
    return None


def _dequantized(
    packed: torch.Tensor,
    scale: torch.Tensor,
    zero_point: torch.Tensor | None = None,
    g_idx: torch.Tensor | None = None,
    *,
    bits: int,
    inputs: int,
    **_shape: torch.Tensor,
) -> torch.Tensor:
    out, groups = scale.shape
    values = unpacked(packed, bits, inputs)
    # Integers and zeros are both stored with the same number added, which cancels where there are zeros.
    zeros = torch.full_like(scale, 2 ** (bits - 1)) if zero_point is None else unpacked(zero_point.T, bits, out).T
    if g_idx is None:
        return times_groups(values, scale, zeros, groups=(out, groups))
    lowest, highest = int(g_idx.min()), int(g_idx.max())
    if lowest < 0 or highest >= groups:
        raise CheckpointError(f"weight_g_idx has groups from {lowest} to {highest}; accepted: 0 to {groups - 1}")
    index = g_idx.long()
    return times_groups(values, scale[:, index], zeros[:, index], groups=(out, inputs))
