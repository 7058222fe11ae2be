"""Read weights called `qweight`, with `qzeros` and `scales`.

GPTQ and AWQ share these names; the shapes tell them apart.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from lowrank_ldu.checkpoints.quantized.awq import find_awq
from lowrank_ldu.checkpoints.quantized.gptq import find_gptq
from lowrank_ldu.checkpoints.quantized.weight import FLOATS, INTEGERS, QuantizedWeight, Stored, missing, refused

if TYPE_CHECKING:
    from lowrank_ldu.checkpoints.reader import TensorInfo

_SUFFIX = ".qweight"


def find_qweight(info: TensorInfo, stored: Stored) -> QuantizedWeight | None:
    """Return a weight that GPTQ or AWQ quantized.

    None if the tensor is not called as its integers.

    Parameters
    ----------
    info : TensorInfo
        A stored tensor.
    stored : Stored

    Returns
    -------
    QuantizedWeight or None
        ``LAYER.weight`` of ``LAYER.qweight``, ``LAYER.qzeros``, ``LAYER.scales`` and, of GPTQ, ``LAYER.g_idx``.
    """
    if not info.name.endswith(_SUFFIX):
        return None
    stem = info.name.removesuffix(_SUFFIX)
    names = {role: f"{stem}.{role}" for role in ("qweight", "qzeros", "scales", "g_idx")}
    roles = stored.roles(names)
    problem = missing(roles, names, ("qzeros", "scales")) or _problem(roles, stored)
    if problem is not None:
        return refused(info, roles, "GPTQ or AWQ", problem)
    out = stored.tensors[roles["scales"]].shape[1]
    find = find_gptq if info.shape[1] == out else find_awq
    return find(f"{stem}.weight", info, roles, stored)


def _problem(roles: dict[str, str], stored: Stored) -> str | None:
    for role, accepted in {"qweight": ("int32",), "qzeros": ("int32",), "scales": FLOATS, "g_idx": INTEGERS}.items():
        if role not in roles:
            continue
        info = stored.tensors[roles[role]]
        dimensions = 1 if role == "g_idx" else 2
        if info.dtype not in accepted or len(info.shape) != dimensions or 0 in info.shape:
            return (
                f"{info.name!r} is {info.dtype} of shape {info.shape}; accepted: {dimensions}-D, not empty, "
                f"{' or '.join(accepted)}"
            )
    return None
