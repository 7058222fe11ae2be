"""Read weights in MXFP4.

They are blocks of numbers of four bits, with a power of two for each block, as the experts of gpt-oss have them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from lowrank_ldu.checkpoints.quantized.packing import looked_up
from lowrank_ldu.checkpoints.quantized.weight import QuantizedWeight, Stored, missing, quantized_weight, refused

if TYPE_CHECKING:
    from lowrank_ldu.checkpoints.reader import TensorInfo

_SUFFIX = "_blocks"
_BYTES_PER_BLOCK = 16
_BIAS = 127
# E2M1: a sign, two bits of exponent, one of mantissa.
_MAGNITUDES = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
_TABLE = torch.tensor([*_MAGNITUDES, *(-magnitude for magnitude in _MAGNITUDES)])


def find_mxfp4(info: TensorInfo, stored: Stored) -> QuantizedWeight | None:
    """Return a weight in blocks of 32 numbers.

    None if the tensor is not called as blocks, or is of another kind.

    Parameters
    ----------
    info : TensorInfo
        A stored tensor.
    stored : Stored

    Returns
    -------
    QuantizedWeight or None
        ``NAME`` ([experts,] out, 32 * groups) of ``NAME_blocks``, ([experts,] out, groups, 16) and uint8, and
        ``NAME_scales``, ([experts,] out, groups) and uint8.
    """
    if not info.name.endswith(_SUFFIX) or info.dtype != "uint8":
        return None
    stem = info.name.removesuffix(_SUFFIX)
    names = {"blocks": info.name, "scales": f"{stem}_scales"}
    roles = stored.roles(names)
    problem = missing(roles, names, ("scales",))
    if problem is None:
        scales = stored.tensors[roles["scales"]]
        if len(info.shape) not in {3, 4} or info.shape[-1] != _BYTES_PER_BLOCK or 0 in info.shape:
            problem = f"blocks of shape {info.shape}; accepted: (out, groups, 16) or (experts, out, groups, 16)"
        elif scales.dtype != "uint8" or scales.shape != info.shape[:-1]:
            problem = f"{scales.name!r} is {scales.dtype} of shape {scales.shape}; accepted: uint8 of {info.shape[:-1]}"
    if problem is not None:
        return refused(info, roles, "MXFP4", problem)
    *rows, groups, _ = info.shape
    shape = (*rows, 2 * _BYTES_PER_BLOCK * groups)
    return quantized_weight(stored, info, roles, _dequantized, scheme="MXFP4", shape=shape, name=stem)


def _dequantized(blocks: torch.Tensor, scales: torch.Tensor) -> torch.Tensor:
    values = looked_up(blocks, _TABLE, high_first=False)
    values *= torch.ldexp(torch.ones(scales.shape), scales.int() - _BIAS).unsqueeze(-1)
    return values.flatten(-2)
