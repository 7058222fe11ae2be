"""Find the quantized weights among stored tensors.

All schemes are tried.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from lowrank_ldu.checkpoints.quantized.bitsandbytes_4bit import find_bitsandbytes_4bit
from lowrank_ldu.checkpoints.quantized.float8 import find_float8
from lowrank_ldu.checkpoints.quantized.int8 import find_int8
from lowrank_ldu.checkpoints.quantized.mxfp4 import find_mxfp4
from lowrank_ldu.checkpoints.quantized.pack_quantized import find_pack_quantized
from lowrank_ldu.checkpoints.quantized.qweight import find_qweight

if TYPE_CHECKING:
    from lowrank_ldu.checkpoints.quantized.weight import QuantizedWeight, Stored

_SCHEMES = (find_qweight, find_bitsandbytes_4bit, find_int8, find_float8, find_mxfp4, find_pack_quantized)


def find_quantized(stored: Stored) -> dict[str, QuantizedWeight]:
    """Return the quantized weights by their main tensor's name.

    The main tensor holds the integers or the bytes.
    """
    return {
        info.name: weight
        for info in stored.tensors.values()
        if (weight := next((weight for find in _SCHEMES if (weight := find(info, stored)) is not None), None))
        is not None
    }
