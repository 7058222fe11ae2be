"""Launch kernels: block sizes, tuning, and the interpreter."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
import triton

from lowrank_ldu.kernels.triton_kernels import configurations
from lowrank_ldu.kernels.triton_kernels.availability import interpreted
from lowrank_ldu.kernels.triton_kernels.core import core_kernel, outer_kernel
from lowrank_ldu.kernels.triton_kernels.decode import decode_kernel
from lowrank_ldu.kernels.triton_kernels.expand import expand_kernel
from lowrank_ldu.kernels.triton_kernels.project import project_kernel
from lowrank_ldu.kernels.triton_kernels.segment import segment_kernel
from lowrank_ldu.kernels.triton_kernels.skeleton import skeleton_kernel

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor


def _prune(configs: list[triton.Config], named: Mapping[str, Any], **options: int) -> list[triton.Config]:
    x = named["x"] if "x" in named else named["y"]
    limit = triton.runtime.driver.active.utils.get_device_properties(x.device.index)["max_shared_mem"]
    blocks = {name: size for name, size in options.items() if name in {"BLOCK_T", "BLOCK_R"}}
    return configurations.fitting(configs, blocks, x.element_size(), limit)


def _tuned(kernel: Any, configs: list[triton.Config], key: list[str], changed: list[str] | None = None) -> Any:
    # Kept on disk under the device's name, which is part of the key: chips of one architecture differ, too.
    return triton.autotune(
        configs,
        key=[*key, "DEVICE"],
        prune_configs_by={"early_config_prune": _prune},
        restore_value=changed,  # what a kernel adds to, tuning adds to again and again
        cache_results=True,
    )(kernel)


_KERNELS = {
    "project": _tuned(project_kernel, configurations.PROJECT, ["tokens", "K", "R", "UPPER", "PRODUCT", "PRECISION"]),
    "expand": _tuned(expand_kernel, configurations.EXPAND, ["tokens", "K", "M", "R", "UPPER", "USES", "PRECISION"]),
    "decode": _tuned(decode_kernel, configurations.DECODE, ["K", "M", "R", "USES", "PRECISION"]),
    "skeleton": _tuned(skeleton_kernel, configurations.SKELETON, ["tokens", "M", "R", "PRECISION"], ["y"]),
}
_PLAIN = {
    "project": project_kernel,
    "expand": expand_kernel,
    "decode": decode_kernel,
    "segment": segment_kernel,
    "skeleton": skeleton_kernel,
    "core": core_kernel,
    "outer": outer_kernel,
}


def run(name: str, grid: Any, *arguments: Any, **options: Any) -> None:
    """Launch a kernel by name on its first argument's device, with tuned blocks."""
    device = arguments[0].device
    if interpreted():
        _PLAIN[name][grid](*arguments, **options, **configurations.INTERPRETED[name])
        return
    with torch.cuda.device(device):
        if name in _KERNELS:
            _KERNELS[name][grid](*arguments, **options)
        else:
            _PLAIN[name][grid](*arguments, **options, **configurations.FIXED[name])


def options_of(x: Tensor) -> dict[str, str]:
    """Return the precision of products and the device, which tuned kernels take."""
    # Full precision, as in torch's own products, unless the user asked for TF32.
    fast = x.dtype == torch.float32 and torch.get_float32_matmul_precision() != "highest"
    device = "interpreter" if interpreted() else torch.cuda.get_device_name(x.device)
    return {"PRECISION": "tf32" if fast else "ieee", "DEVICE": device}
