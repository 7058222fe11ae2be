"""Bring weights into memory that accelerate has moved out.

They are in memory only while their module is called.
"""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import nn


def offloading_hook(module: nn.Module) -> Any:
    """Return accelerate's hook of a module with offloaded weights.

    The hook brings the weights into memory. None if they stay there.
    """
    hook = vars(module).get("_hf_hook")
    # A sequence of hooks has them in an attribute.
    return next((each for each in getattr(hook, "hooks", (hook,)) if getattr(each, "offload", False)), None)


def is_offloaded(module: nn.Module) -> bool:
    """Return whether a module's weights are out of memory until its call."""
    parameters = module._parameters.values()  # noqa: SLF001  # Module.__getattr__ is slow
    away = any(parameter is not None and parameter.device.type == "meta" for parameter in parameters)
    return away and offloading_hook(module) is not None


def own_memory(module: nn.Module) -> None:
    """Give a module with offloaded weights memory of its own.

    Tied weights in accelerate's store are not in it.
    """
    if offloading_hook(module) is not None:
        for parameter in module.parameters():
            parameter.data = parameter.data.clone()


@contextmanager
def onloaded(*modules: nn.Module, written: bool = False) -> Iterator[None]:
    """Bring offloaded weights of modules into memory during the block.

    Tensors that the block has taken stay.

    Parameters
    ----------
    *modules : nn.Module
        Those that are not offloaded are left alone.
    written : bool
        Keep what the block writes to them; in memory, even if they were on disk.
    """
    hooks = {each: offloading_hook(each) for each in modules if "_hf_hook" in vars(each) and is_offloaded(each)}
    for module, hook in hooks.items():
        hook.pre_forward(module)
        if written:
            own_memory(module)
    try:
        yield
        for module, hook in hooks.items() if written else ():
            present = [*module.named_parameters(), *module.named_buffers()]
            hook.weights_map = {name: tensor.detach().to("cpu", copy=True) for name, tensor in present}
    finally:
        for module, hook in hooks.items():
            hook.post_forward(module, None)
