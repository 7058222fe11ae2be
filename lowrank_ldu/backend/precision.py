"""Compute in the arrays' own precision, whatever is set around it."""

from __future__ import annotations

import sys
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator


@contextmanager
def full_precision() -> Iterator[None]:
    """Turn torch's autocast off for a while, on every device.

    Also a decorator, `@full_precision()`, of whatever factors or measures: products that autocast rounds to bfloat16
    give other pivots, and LAPACK has no bfloat16. torch is not imported for it.

    Examples
    --------
    >>> import torch
    >>> A = torch.ones(2, 2)
    >>> with torch.autocast("cpu", torch.bfloat16), full_precision():
    ...     (A @ A).dtype
    torch.float32
    """
    with ExitStack() as stack:
        for torch, kind in _autocast_devices():
            stack.enter_context(torch.autocast(kind, enabled=False))
        yield


def _autocast_devices() -> list[tuple[Any, str]]:
    """Return torch with each type of device that autocast is on for."""
    # Another thread may be importing it: autocast is on in no thread then.
    torch: Any = sys.modules.get("torch")
    if not hasattr(torch, "autocast") or not hasattr(torch, "accelerator"):
        return []
    accelerator = torch.accelerator.current_accelerator()
    kinds = ["cpu"] if accelerator is None else ["cpu", accelerator.type]
    return [
        (torch, kind) for kind in kinds if torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind)
    ]
