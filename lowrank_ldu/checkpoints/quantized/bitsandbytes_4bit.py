"""Read weights in NF4 and FP4 of bitsandbytes.

A value is one of sixteen numbers, looked up, times the largest of its block.
"""

from __future__ import annotations

import math
from functools import partial
from typing import TYPE_CHECKING

import torch

from lowrank_ldu.checkpoints.model_config import Section
from lowrank_ldu.checkpoints.quantized.packing import looked_up
from lowrank_ldu.checkpoints.quantized.weight import QuantizedWeight, Stored, missing, quantized_weight, refused
from lowrank_ldu.untrusted import CONFIGURATION, strict_json

if TYPE_CHECKING:
    from lowrank_ldu.checkpoints.reader import TensorInfo

_KINDS = ("nf4", "fp4")
# The bytes may be stored under the name of a wider type.
_STORAGE = ("uint8", "float16", "bfloat16", "float32")


def find_bitsandbytes_4bit(info: TensorInfo, stored: Stored) -> QuantizedWeight | None:
    """Return a weight that bitsandbytes quantized to four bits.

    None if there is nothing of it beside the tensor.

    Parameters
    ----------
    info : TensorInfo
        A stored tensor.
    stored : Stored

    Returns
    -------
    QuantizedWeight or None
        ``NAME`` of its bytes, ``NAME.absmax``, ``NAME.quant_map``, and ``NAME.quant_state.bitsandbytes__nf4`` or fp4,
        in which its shape stands; with double quantization ``NAME.nested_absmax`` and ``NAME.nested_quant_map`` too.
    """
    kind = next((kind for kind in _KINDS if _state_name(info.name, kind) in stored.tensors), None)
    if kind is None and f"{info.name}.absmax" not in stored.tensors:
        return None
    names = {
        "weight": info.name,
        "state": _state_name(info.name, kind or _KINDS[0]),
        **{role: f"{info.name}.{role}" for role in ("absmax", "quant_map", "nested_absmax", "nested_quant_map")},
    }
    roles = stored.roles(names)
    scheme = f"bitsandbytes {kind or 'of 4 bits'}"
    problem = missing(roles, names, ("state", "absmax", "quant_map"))
    if problem is not None:
        return refused(info, roles, scheme, problem)
    state = _state(roles["state"], stored)
    if isinstance(state, str):
        return refused(info, roles, scheme, state)
    shape, block, nested_block, offset = state
    problem = _problem(roles, stored, math.prod(shape), block, nested_block)
    if problem is not None:
        return refused(info, roles, scheme, problem)
    dequantize = partial(_dequantized, shape=shape, block=block, nested_block=nested_block, offset=offset)
    return quantized_weight(stored, info, roles, dequantize, scheme=scheme, shape=shape)


def _state_name(name: str, kind: str) -> str:
    return f"{name}.quant_state.bitsandbytes__{kind}"


def _state(name: str, stored: Stored) -> tuple[tuple[int, int], int, int | None, float] | str:
    """Return the shape and blocks of a weight.

    They are shape, block, block of the nested maxima and their offset, or why the text in a tensor does not say it.
    """
    text = stored.description(name)
    if text is None or text.dtype != torch.uint8:
        return f"{name!r} is not a text of JSON that could be read"
    try:
        state = strict_json(text.reshape(-1).numpy().tobytes(), CONFIGURATION)
        rows, columns = (Section({"size": size}).integer("size") for size in state["shape"])
        block = Section(state).integer("blocksize")
        offset = float(state.get("nested_offset", 0.0))
    except (AttributeError, KeyError, OverflowError, TypeError, ValueError) as error:
        return f"{name!r} is not the JSON of a matrix ({type(error).__name__})"
    if rows is None or columns is None or block is None or not math.isfinite(offset):
        return f"{name!r} says a shape, a block size or an offset that no matrix has"
    return (rows, columns), block, Section(state).integer("nested_blocksize"), offset


def _problem(roles: dict[str, str], stored: Stored, count: int, block: int, nested_block: int | None) -> str | None:
    tensors = {role: stored.tensors[name] for role, name in roles.items()}
    weight, absmax = tensors["weight"], tensors["absmax"]
    if weight.dtype not in _STORAGE or weight.nbytes != math.ceil(count / 2):
        return f"{weight.nbytes} bytes of {weight.dtype} hold no {count} numbers of 4 bits"
    blocks = math.ceil(count / block)
    nested = "nested_absmax" in roles
    expected = {"absmax": ("uint8" if nested else "float32", blocks), "quant_map": ("float32", 16)}
    if nested:
        if "nested_quant_map" not in roles or nested_block is None:
            return "nested_absmax without nested_quant_map or nested_blocksize"
        expected |= {
            "nested_absmax": ("float32", math.ceil(blocks / nested_block)),
            "nested_quant_map": ("float32", 256),
        }
    for role, (dtype, size) in expected.items():
        info = tensors[role]
        if info.dtype != dtype or math.prod(info.shape) != size:
            return f"{info.name!r} is {info.dtype} of shape {info.shape}; accepted: {size} of {dtype}"
    return None if absmax.shape else f"{absmax.name!r} is a single number"


def _dequantized(
    weight: torch.Tensor,
    absmax: torch.Tensor,
    quant_map: torch.Tensor,
    nested_absmax: torch.Tensor | None = None,
    nested_quant_map: torch.Tensor | None = None,
    *,
    shape: tuple[int, int],
    block: int,
    nested_block: int | None,
    offset: float,
    **_state: torch.Tensor,
) -> torch.Tensor:
    if nested_absmax is not None and nested_quant_map is not None and nested_block is not None:
        absmax = _times_blocks(
            nested_quant_map.reshape(-1).index_select(0, absmax.reshape(-1).int()), nested_absmax, nested_block
        )
        absmax += offset
    packed = weight.contiguous().reshape(-1).view(torch.uint8)
    values = looked_up(packed, quant_map.reshape(-1), high_first=True)
    return _times_blocks(values[: math.prod(shape)], absmax, block).reshape(shape)


def _times_blocks(values: torch.Tensor, factors: torch.Tensor, block: int) -> torch.Tensor:
    """Multiply each run of `block` values by its factor.

    This is done in place. The last run may be shorter.
    """
    factors = factors.reshape(-1)
    whole = len(values) // block
    values[: whole * block].view(whole, block).mul_(factors[:whole, None])
    if len(values) % block:
        values[whole * block :].mul_(factors[whole])
    return values
