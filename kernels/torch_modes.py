"""Return the modes of torch during a call.

They are autocast, transforms, and graphs without values.

Three of the questions have no public name in torch: `torch.compiler` and `torch.func` do not say whether a tensor is
one of their stand-ins, nor torch whether a dispatch mode is on. They are imported here alone, for one place to look at
where a version of torch moves them.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING

import torch
from torch._C._functorch import is_functorch_wrapped_tensor
from torch._subclasses.fake_tensor import is_fake
from torch.autograd import forward_ad

if TYPE_CHECKING:
    from torch import Tensor

__all__ = [
    "autocast_dtype", "cast", "has_values", "is_dispatched", "is_exporting", "is_fake", "is_stand_in", "transformed",
    "without_autocast",
]  # fmt: skip

# torch 2.7 and later have it.
is_exporting = getattr(torch.compiler, "is_exporting", lambda: False)


def autocast_dtype(device_type: str) -> torch.dtype | None:
    """Return the dtype of products under autocast.

    None where autocast is off or unknown to the device.
    """
    # Devices without autocast, such as meta, raise when asked.
    if torch.amp.is_autocast_available(device_type) and torch.is_autocast_enabled(device_type):
        return torch.get_autocast_dtype(device_type)
    return None


def without_autocast(device_type: str) -> AbstractContextManager[object]:
    """Return a context in which autocast is off."""
    if autocast_dtype(device_type) is None:
        return nullcontext()
    return torch.autocast(device_type, enabled=False)


def cast(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """Return a tensor in autocast's dtype.

    It comes as it is if it is float64 or no floating tensor.
    """
    if not isinstance(tensor, torch.Tensor) or not tensor.is_floating_point():
        return tensor
    return tensor if tensor.dtype == torch.float64 else tensor.to(dtype)


def transformed() -> bool:
    """Return whether a transform or forward-mode differentiation runs.

    Transforms are those of torch.func.
    """
    if torch.compiler.is_compiling():
        return False
    # torch has no public function for either.
    return torch._C._functorch.peek_interpreter_stack() is not None or forward_ad._current_level >= 0  # noqa: SLF001


def is_dispatched() -> bool:
    """Return whether a dispatch mode sees this thread's operations.

    Counters of flops and recorders of graphs are such modes. They do not see other threads.
    """
    return bool(torch._C._len_torch_dispatch_stack())  # noqa: SLF001


def is_stand_in(tensor: Tensor) -> bool:
    """Return whether a tensor stands in for another.

    torch.export and transforms of torch.func put tensors without numbers in the place of others.
    """
    return bool(is_fake(tensor) or is_functorch_wrapped_tensor(tensor))


def has_values(x: Tensor) -> bool:
    """Return whether values can be read.

    They cannot while a graph is made, nor of tensors without memory.
    """
    return not (torch.compiler.is_compiling() or x.device.type == "meta" or is_fake(x))
