"""Read weights of GPTQ.

Their integers are packed along the inputs. Each output has a scale and a zero in each group of inputs.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import torch

from lowrank_ldu.checkpoints.quantized.packing import unpacked
from lowrank_ldu.checkpoints.quantized.weight import QuantizedWeight, Stored, quantized_weight, refused
from lowrank_ldu.errors import CheckpointError

if TYPE_CHECKING:
    from lowrank_ldu.checkpoints.model_config import ModelConfig
    from lowrank_ldu.checkpoints.reader import TensorInfo

_BITS = (2, 3, 4, 8)
# Number to add to the stored zeros. The first version stores them less one; files without a version are of it.
_ZEROS = {"gptq": 1, "gptq_v2": 0}


def find_gptq(name: str, info: TensorInfo, roles: dict[str, str], stored: Stored) -> QuantizedWeight:
    """Return a weight (out, in), or a refusal.

    A refusal says why the tensors do not make a weight.

    Parameters
    ----------
    name : str
        Of the weight.
    info : TensorInfo
        The integers, (in * bits / 32, out).
    roles : dict of str to str
        With zeros (groups, out * bits / 32) and scales (groups, out); and g_idx (in,), the group of each input, without
        which they are equal parts.
    stored : Stored
    """
    words, out = info.shape
    groups = stored.tensors[roles["scales"]].shape[0]
    zeros = stored.tensors[roles["qzeros"]].shape
    bits = zeros[1] * 32 // out
    if bits not in _BITS or zeros != (groups, out * bits // 32) or words * 32 % bits:
        return refused(
            info,
            roles,
            "GPTQ",
            f"qweight {info.shape}, qzeros {zeros} and scales {(groups, out)} fit no width of {_BITS} bits",
        )
    inputs = words * 32 // bits
    if "g_idx" in roles and stored.tensors[roles["g_idx"]].shape != (inputs,):
        problem = f"g_idx has shape {stored.tensors[roles['g_idx']].shape}, of {inputs} inputs"
        return refused(info, roles, "GPTQ", problem)
    if "g_idx" not in roles and inputs % groups:
        return refused(info, roles, "GPTQ", f"{inputs} inputs are no {groups} equal groups, and there is no g_idx")
    added = _added_to_zeros(stored.config_of(info))
    if isinstance(added, str):
        return refused(info, roles, "GPTQ", added)
    dequantize = partial(_dequantized, bits=bits, added=added)
    return quantized_weight(stored, info, roles, dequantize, scheme=f"GPTQ {bits} bits", shape=(out, inputs), name=name)


def _added_to_zeros(config: ModelConfig) -> int | str:
    """Return the number to add to the stored zeros.

    If it is not known, return why.
    """
    options = config.quantization
    if options is None:
        return "neither config.json nor quantize_config.json beside it says whether zeros are stored less one"
    method = options.text("quant_method") or "gptq"
    layout = options.text("checkpoint_format") or options.text("format") or "gptq"
    if method != "gptq" or layout not in _ZEROS:
        return f"its configuration says {method!r} and {layout!r}; accepted: 'gptq' as {' or '.join(map(repr, _ZEROS))}"
    return _ZEROS[layout]


def _dequantized(
    qweight: torch.Tensor,
    qzeros: torch.Tensor,
    scales: torch.Tensor,
    g_idx: torch.Tensor | None = None,
    *,
    bits: int,
    added: int,
) -> torch.Tensor:
    words, out = qweight.shape
    inputs, groups = words * 32 // bits, len(scales)
    zeros = unpacked(qzeros, bits, out).T.float() + added
    values = unpacked(qweight.T, bits, inputs).float()
    if g_idx is None:
        g_idx = torch.arange(groups).repeat_interleave(inputs // groups)
    lowest, highest = int(g_idx.min()), int(g_idx.max())
    if lowest < 0 or highest >= groups:
        raise CheckpointError(f"g_idx has groups from {lowest} to {highest}; accepted: 0 to {groups - 1}")
    index = g_idx.long()
    values -= zeros.index_select(1, index)
    values *= scales.float().T.index_select(1, index)
    return values
