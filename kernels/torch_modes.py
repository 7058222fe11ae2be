"""Ask torch for its modes during a call: autocast, transforms, graphs without values.

Two of the questions have no public name in torch: `torch.compiler` and `torch.func` do not say whether a tensor is one
of their stand-ins. They are imported here alone, for one place to look at where a version of torch moves them.
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
    "autocast_dtype", "cast", "has_values", "is_exporting", "is_fake", "is_stand_in", "transformed", "without_autocast",
]  # fmt: skip

# Of torch 2.7 and later.
is_exporting = getattr(torch.compiler, "is_exporting", lambda: False)


def autocast_dtype(device_type: str) -> torch.dtype | None:
    """Return the dtype of products under autocast, None where it is off or unknown to the device."""
    # Devices that have none, such as meta, are not to be asked.
    if torch.amp.is_autocast_available(device_type) and torch.is_autocast_enabled(device_type):
        return torch.get_autocast_dtype(device_type)
    return None


def without_autocast(device_type: str) -> AbstractContextManager[object]:
    """Return a context in which autocast is off."""
    if autocast_dtype(device_type) is None:
        return nullcontext()
    return torch.autocast(device_type, enabled=False)


def cast(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """Return a tensor in autocast's dtype, as it is if it is float64 or no floating tensor."""
    if not isinstance(tensor, torch.Tensor) or not tensor.is_floating_point():
        return tensor
    return tensor if tensor.dtype == torch.float64 else tensor.to(dtype)


def transformed() -> bool:
    """Whether a transform of torch.func or forward-mode differentiation is under way."""
    if torch.compiler.is_compiling():
        return False
    # There is no public question for either.
    return torch._C._functorch.peek_interpreter_stack() is not None or forward_ad._current_level >= 0  # noqa: SLF001


def is_stand_in(tensor: Tensor) -> bool:
    """Whether torch.export or a transform of torch.func has put a tensor without numbers in the place of another."""
    return bool(is_fake(tensor) or is_functorch_wrapped_tensor(tensor))


def has_values(x: Tensor) -> bool:
    """Whether values can be read: not while a graph is made, nor of tensors without memory."""
    return not (torch.compiler.is_compiling() or x.device.type == "meta" or is_fake(x))
