"""Return the modes of torch during a call.

They are autocast, transforms, and graphs without values.

Three of the questions have no public name in torch: `torch.compiler` and `torch.func` do not say whether a tensor is
one of their stand-ins, nor torch whether a dispatch mode is on. A mark of constants has one, which loads the compiler.
They are here alone, for one place to look at where a version of torch moves them.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, TypeVar

import torch
from torch._C._functorch import is_functorch_wrapped_tensor
from torch._subclasses.fake_tensor import is_fake
from torch.autograd import forward_ad

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

_Marked = TypeVar("_Marked", bound="Callable[..., object]")

__all__ = [
    "autocast_dtype", "cast", "constant_result", "has_values", "is_dispatched", "is_exporting", "is_fake",
    "is_stand_in", "known_true", "transformed", "without_autocast",
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


def constant_result(function: _Marked) -> _Marked:
    """Mark a function as one whose results are constants.

    torch.compile takes them so. `torch.compiler.assume_constant_result` sets the same mark, and imports the compiler
    for it: as long again as the import of torch, which who never compiles should not wait for.
    """
    function._dynamo_marked_constant = True  # type: ignore[attr-defined]  # noqa: SLF001
    return function


def is_stand_in(tensor: Tensor) -> bool:
    """Return whether a tensor stands in for another.

    torch.export and transforms of torch.func put tensors without numbers in the place of others.
    """
    return bool(is_fake(tensor) or is_functorch_wrapped_tensor(tensor))


def known_true(condition: bool | torch.SymBool) -> bool:
    """Return whether a condition is true, for all sizes in a graph of dynamic ones.

    Symbolic sizes, and all of SymPy, are imported where there are any. torch.compile shows them as plain values.
    """
    if isinstance(condition, bool) and not torch.compiler.is_compiling():
        return condition
    from torch.fx.experimental.symbolic_shapes import statically_known_true  # noqa: PLC0415

    return bool(statically_known_true(condition))


def has_values(x: Tensor) -> bool:
    """Return whether values can be read.

    They cannot while a graph is made, nor of tensors without memory.
    """
    return not (torch.compiler.is_compiling() or x.device.type == "meta" or is_fake(x))
