"""Read float8 weights with their scales.

The scales are stored beside them.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch

from lowrank_ldu.checkpoints.quantized.weight import FLOATS, QuantizedWeight, Stored, quantized_weight

if TYPE_CHECKING:
    from lowrank_ldu.checkpoints.reader import TensorInfo

# Names in files of DeepSeek and of compressed-tensors. In both, the stored numbers are multiplied by it.
_SUFFIXES = ("_scale_inv", "_scale")
# Rows and columns of the blocks that have a scale each.
_BLOCK = 128


def find_float8(info: TensorInfo, stored: Stored) -> QuantizedWeight | None:
    """Return a float8 matrix (m, n) with its scale.

    None if there is no scale that fits.

    Parameters
    ----------
    info : TensorInfo
        A stored tensor.
    stored : Stored

    Returns
    -------
    QuantizedWeight or None
        ``NAME`` with ``NAME_scale_inv`` or ``NAME_scale``, floating: one number, one for each row, (m,) or (m, 1), or
        one for each block of 128 x 128, (ceil(m / 128), ceil(n / 128)).
    """
    if not info.dtype.startswith("float8_e") or not hasattr(torch, info.dtype) or len(info.shape) != 2:
        return None
    for suffix in _SUFFIXES:
        scale = stored.tensors.get(info.name + suffix)
        if scale is not None and scale.dtype in FLOATS and _spread(scale.shape, info.shape) is not None:
            roles = {"values": info.name, "scale": scale.name}
            return quantized_weight(stored, info, roles, dequantized, scheme=info.dtype, shape=info.shape)
    return None


def dequantized(values: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    """Return float8 values (m, n) times their scale, float32.

    Raises
    ------
    ValueError
        The scale's shape is none of those of `find_float8`.
    """
    spread = _spread(tuple(scale.shape), tuple(values.shape))
    if spread is None:
        raise ValueError(f"scale has shape {tuple(scale.shape)}, which fits no rule for values {tuple(values.shape)}")
    m, n = values.shape
    factors = scale.float().reshape(spread)
    if spread == _blocks((m, n)):
        factors = factors.repeat_interleave(_BLOCK, 0)[:m].repeat_interleave(_BLOCK, 1)[:, :n]
    return values.float().mul_(factors)


def _blocks(shape: tuple[int, ...]) -> tuple[int, int]:
    return math.ceil(shape[0] / _BLOCK), math.ceil(shape[1] / _BLOCK)


def _spread(scale: tuple[int, ...], values: tuple[int, ...]) -> tuple[int, int] | None:
    """Return the shape in which a scale multiplies.

    The scale is one number, a column, or blocks.
    """
    if math.prod(scale) == 1:
        return 1, 1
    if scale in {(values[0],), (values[0], 1)}:
        return values[0], 1
    return _blocks(values) if scale == _blocks(values) else None
