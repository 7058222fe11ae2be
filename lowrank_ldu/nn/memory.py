"""Tell which tensors share memory.

It does not matter which objects hold them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Generic, NamedTuple, TypeVar

if TYPE_CHECKING:
    from collections.abc import Iterable

    import torch
    from torch import Tensor

_Owner = TypeVar("_Owner")


class Span(NamedTuple):
    """Hold the range of a storage's bytes under a tensor.

    It reaches from the tensor's first entry to its last.
    """

    storage: tuple[torch.device, int]
    start: int
    end: int

    @classmethod
    def of(cls, tensor: Tensor) -> Span | None:
        """Return a tensor's span, or None where it is unknown.

        It is unknown on the meta device and for some quantized tensors.
        """
        if tensor.device.type == "meta":
            return None
        try:
            address = tensor.untyped_storage().data_ptr()
            size, strides, first = tensor.shape, tensor.stride(), tensor.storage_offset()
        except (NotImplementedError, RuntimeError, TypeError, ValueError):
            return None  # a subclass that has no storage of its own, or one without numbers
        if not address or not tensor.numel():
            return None
        last = int(first + sum((length - 1) * stride for length, stride in zip(size, strides, strict=True)))
        width = tensor.element_size()
        return cls((tensor.device, address), int(first) * width, (last + 1) * width)

    def overlaps(self, other: Span) -> bool:
        """Return whether two spans have bytes in common."""
        return self.storage == other.storage and self.start < other.end and other.start < self.end


def share_memory(a: Tensor, b: Tensor) -> bool:
    """Return whether writing to one tensor may change the other.

    Then they are one tensor, or they overlap in one storage.

    Examples
    --------
    >>> import torch
    >>> flat = torch.zeros(8)
    >>> share_memory(flat[:4], flat[2:6]), share_memory(flat[:4], flat[4:])
    (True, False)
    """
    if a is b:
        return True
    one = Span.of(a)
    two = None if one is None else Span.of(b)
    return one is not None and two is not None and one.overlaps(two)


class Owners(Generic[_Owner]):
    """Hold the owner of each tensor.

    It answers who else owns some of a tensor's memory.

    Parameters
    ----------
    owned : iterable of (owner, Tensor)
    """

    def __init__(self, owned: Iterable[tuple[_Owner, Tensor]]) -> None:
        self._by_identity: dict[int, list[_Owner]] = {}
        self._by_storage: dict[tuple[torch.device, int], list[tuple[Span, _Owner]]] = {}
        for owner, tensor in owned:
            span = Span.of(tensor)
            if span is None:
                self._by_identity.setdefault(id(tensor), []).append(owner)
            else:
                self._by_storage.setdefault(span.storage, []).append((span, owner))

    def of(self, tensor: Tensor) -> list[_Owner]:
        """Return the owners of a tensor and of overlapping tensors.

        They come in the order in which they were given.
        """
        span = Span.of(tensor)
        if span is None:
            return self._by_identity.get(id(tensor), [])
        return [owner for other, owner in self._by_storage.get(span.storage, []) if other.overlaps(span)]
