"""Check whether the Triton kernels can run.

The answer is for given tensors, and says why not. This module imports no triton.
"""

from __future__ import annotations

import importlib.util
import os

import torch

from lowrank_ldu.kernels.torch_modes import constant_result

DTYPES = (torch.float16, torch.bfloat16, torch.float32)

# From here on there are matrix instructions for bfloat16.
_FIRST_CAPABILITY = (8, 0)


def _not_interpreted(dtype: torch.dtype) -> str | None:
    if not interpreted():
        return (
            "the tensors are on the CPU, which Triton does not compile for (TRITON_INTERPRET=1, set before Python "
            "starts, interprets the kernels there, slowly)"
        )
    return "Triton's interpreter computes bfloat16 products wrongly" if dtype == torch.bfloat16 else None


# torch.compile takes these for what they are, constants of the process.
@constant_result
def _installed() -> bool:
    return importlib.util.find_spec("triton") is not None


@constant_result
def interpreted() -> bool:
    """Return whether Triton interprets kernels on the CPU.

    That is slow and meant for tests.
    """
    return os.environ.get("TRITON_INTERPRET", "0").lower() in {"1", "true", "on", "yes"}


def obstacle(device: torch.device, dtype: torch.dtype) -> str | None:
    """Return why the kernels cannot run, or None.

    The answer is for a device with a dtype; None means that they can.

    Examples
    --------
    >>> obstacle(torch.device("cpu"), torch.float64)
    'Triton kernels are for float16, bfloat16 and float32, not for float64'
    """
    if dtype not in DTYPES:
        return f"Triton kernels are for float16, bfloat16 and float32, not for {str(dtype).removeprefix('torch.')}"
    if not _installed():
        return "triton is not installed: pip install 'lowrank-ldu[triton]' (Linux)"
    if device.type == "cpu":
        return _not_interpreted(dtype)
    if device.type != "cuda":
        return f"the tensors are on {device.type!r}, and the kernels were written for CUDA and ROCm devices"
    if interpreted():
        return "TRITON_INTERPRET=1 is set: kernels are interpreted, on the CPU only"
    return _too_old(device.index)


@constant_result
def _too_old(device: int | None) -> str | None:
    capability = torch.cuda.get_device_capability(device)
    if torch.version.hip is None and capability < _FIRST_CAPABILITY:
        name = torch.cuda.get_device_name(device)
        return f"{name} has compute capability {'.'.join(map(str, capability))}; the kernels need 8.0"
    return None
