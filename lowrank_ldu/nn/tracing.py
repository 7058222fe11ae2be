"""What torch's tracers put in the place of tensors and calls.

Two of the questions have no public name in torch: `torch.compiler` and `torch.func` do not say whether a tensor is one
of their stand-ins. They are imported here alone, for one place to look at where a version of torch moves them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch._C._functorch import is_functorch_wrapped_tensor
from torch._subclasses.fake_tensor import is_fake

if TYPE_CHECKING:
    from torch import Tensor, nn
    from torch.fx import Proxy

__all__ = ["is_exporting", "is_fake", "is_stand_in", "recorded_call"]

# Of torch 2.7 and later.
is_exporting = getattr(torch.compiler, "is_exporting", lambda: False)


def is_stand_in(tensor: Tensor) -> bool:
    """Whether torch.export or a transform of torch.func has put a tensor without numbers in the place of another."""
    return bool(is_fake(tensor) or is_functorch_wrapped_tensor(tensor))


def recorded_call(layer: nn.Module, x: Proxy, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
    """Record the call of a layer as one node of torch.fx's graph.

    What a layer does depends on the values of its input, which are not there yet.

    Raises
    ------
    RuntimeError
        The layer is all that is traced.
    """
    tracer: Any = x.tracer
    if layer is tracer.root:
        raise RuntimeError(
            f"torch.fx traces a {type(layer).__name__} by itself, whose forward depends on its input; accepted: a "
            "model with the layer inside, which becomes one node"
        )
    return tracer.create_proxy("call_module", tracer.path_of_module(layer), (x, *args), kwargs)  # type: ignore[no-any-return]
