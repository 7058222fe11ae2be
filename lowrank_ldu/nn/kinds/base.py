"""What the layer has to know of a kind of module."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Protocol

if TYPE_CHECKING:
    from torch import Tensor, nn


class LayerKind(Protocol):
    """A kind of module whose weight reads as one matrix W (m, n).

    Attributes
    ----------
    name : str
        As written into an adapter's configuration.
    linear : bool
        Whether "all-linear" takes it.
    """

    name: ClassVar[str]
    linear: ClassVar[bool]

    @staticmethod
    def as_matrix(weight: Tensor) -> Tensor:
        """Return the stored weight as W (m, n), a view of it where its layout allows."""
        ...

    @staticmethod
    def as_weight(matrix: Tensor, weight: Tensor) -> Tensor:
        """Return a matrix (m, n) in the layout and shape of the stored weight."""
        ...

    @staticmethod
    def update(module: nn.Module, x: Tensor, left: Tensor, right: Tensor, delta: Tensor) -> Tensor:
        """Return what left (m, r) diag(delta) right (r, n), added to W, adds to the module's output for x.

        Parameters
        ----------
        module : nn.Module
            The base layer, for its stride, padding and the like.
        x : Tensor
            The module's input.
        left, right : Tensor, shapes (m, r) and (r, n)
            Constant.
        delta : Tensor, shape (r,), or (B, r)
            One diagonal, or one for each of the B rows of the batch.
        """
        ...

    @staticmethod
    def lora_pair(left: Tensor, right: Tensor) -> tuple[Tensor, Tensor]:
        """Return (A, B) as LoRA keeps them for this kind, for the update left @ right of W."""
        ...


def per_row(delta: Tensor, dimensions: int) -> Tensor:
    """Return delta (r,) as it is, or (B, r) as (B, 1, ..., 1, r) with `dimensions` dimensions in all."""
    if delta.ndim == 1:
        return delta
    return delta.reshape(delta.shape[0], *(1,) * (dimensions - 2), delta.shape[1])
