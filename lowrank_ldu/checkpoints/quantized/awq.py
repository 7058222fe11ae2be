"""Read weights of AWQ.

Their integers of four bits are packed along the outputs, every other one first.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from lowrank_ldu.checkpoints.quantized.packing import unpacked
from lowrank_ldu.checkpoints.quantized.weight import QuantizedWeight, Stored, quantized_weight, refused

if TYPE_CHECKING:
    import torch

    from lowrank_ldu.checkpoints.reader import TensorInfo

_BITS = 4
_IN_WORD = 32 // _BITS
# Place of each output in its word.
_PLACES = [0, 4, 1, 5, 2, 6, 3, 7]


def find_awq(name: str, info: TensorInfo, roles: dict[str, str], stored: Stored) -> QuantizedWeight:
    """Return a weight (out, in), or a refusal.

    A refusal says why the tensors do not make a weight.

    Parameters
    ----------
    name : str
        Of the weight.
    info : TensorInfo
        The integers, (in, out / 8).
    roles : dict of str to str
        With zeros (groups, out / 8) and scales (groups, out): the groups are equal parts of the inputs.
    stored : Stored
    """
    inputs, words = info.shape
    zeros, scales = (stored.tensors[roles[role]].shape for role in ("qzeros", "scales"))
    groups, out = scales
    if words * _IN_WORD != out or zeros != (groups, words) or inputs % groups:
        return refused(
            info,
            roles,
            "GPTQ or AWQ",
            f"qweight {info.shape}, qzeros {zeros} and scales {scales} are neither GPTQ's, packed along the inputs, "
            "nor AWQ's of 4 bits, packed along the outputs",
        )
    read = {role: roles[role] for role in ("qweight", "qzeros", "scales")}
    return quantized_weight(stored, info, read, _dequantized, scheme="AWQ 4 bits", shape=(out, inputs), name=name)


def _dequantized(qweight: torch.Tensor, qzeros: torch.Tensor, scales: torch.Tensor) -> torch.Tensor:
    groups, out = scales.shape
    values = _outputs(qweight).float().reshape(groups, -1, out)
    values -= _outputs(qzeros).float().unsqueeze(1)
    values *= scales.float().unsqueeze(1)
    return values.reshape(-1, out).T


def _outputs(words: torch.Tensor) -> torch.Tensor:
    rows, count = words.shape
    return unpacked(words, _BITS, _IN_WORD * count).reshape(rows, count, _IN_WORD)[:, :, _PLACES].reshape(rows, -1)
