"""Define the interface of a kind of module.

It is all that the layer has to know of it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Protocol

if TYPE_CHECKING:
    from torch import Tensor, nn


class LayerKind(Protocol):
    """Kind of module whose weight reads as one matrix W (m, n).

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
        """Return the stored weight as a matrix W (m, n).

        It is a view of the weight where the layout allows.
        """
        ...

    @staticmethod
    def as_weight(matrix: Tensor, weight: Tensor) -> Tensor:
        """Return a matrix (m, n) in the shape of the stored weight.

        The layout is the weight's, too.
        """
        ...

    @staticmethod
    def update(module: nn.Module, x: Tensor, left: Tensor, right: Tensor, core: Tensor) -> Tensor:
        """Return the output that an update of W adds for x.

        The update of W is left (m, r) K right (r, n).

        Parameters
        ----------
        module : nn.Module
            The base layer, for its stride, padding and the like.
        x : Tensor
            The module's input.
        left, right : Tensor, shapes (m, r) and (r, n)
            Constant.
        core : Tensor
            K, a diagonal (r,) or blocks (g, b, b); or one for each of the B rows of the batch.
        """
        ...

    @staticmethod
    def lora_pair(left: Tensor, right: Tensor) -> tuple[Tensor, Tensor]:
        """Return LoRA's pair (A, B) for left @ right.

        left @ right is an update of W. The layout is the one that LoRA keeps for this kind.
        """
        ...
