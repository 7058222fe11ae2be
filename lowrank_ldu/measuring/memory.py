"""Measure the memory of a step."""

from __future__ import annotations

import json
import os
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch.autograd.graph import saved_tensors_hooks
from torch.profiler import ProfilerActivity, profile

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor, nn


def peak_bytes(step: Callable[[], None], device: torch.device) -> int:
    """Return the peak memory of a step above its start.

    Notes
    -----
    On a GPU the allocator keeps count. On the CPU its events are taken from a trace of torch's profiler.
    """
    step()  # some memory is allocated once, at the first call
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        step()
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device) - before
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # it would report its start and stop on stderr
    with tempfile.TemporaryDirectory() as folder:
        with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as trace:
            step()
        path = Path(folder) / "trace.json"
        trace.export_chrome_trace(str(path))
        events = json.loads(path.read_text(encoding="utf-8"))["traceEvents"]
    allocations = sorted(
        (event["ts"], int(event["args"]["Bytes"])) for event in events if event.get("name") == "[memory]"
    )
    present = highest = 0
    for _, size in allocations:
        present += size
        highest = max(highest, present)
    return highest


def saved_bytes(module: nn.Module, x: Tensor) -> int:
    """Return the bytes that autograd keeps of a forward pass.

    Without what the module holds anyway.

    Each storage counts once, with the part of it that was kept.
    """
    held = {tensor.untyped_storage().data_ptr() for tensor in (*module.parameters(), *module.buffers())}
    kept: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        place = tensor.untyped_storage().data_ptr()
        if place not in held:
            kept[place] = max(kept.get(place, 0), tensor.numel() * tensor.element_size())
        return tensor

    with saved_tensors_hooks(pack, lambda tensor: tensor):
        y = module(x)
    del y
    return sum(kept.values())
