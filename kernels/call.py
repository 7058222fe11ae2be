"""Hold the tensors of one call.

Every plan takes the two named tuples.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from torch import Tensor

    from lowrank_ldu.kernels.skeleton import Skeleton


class Needs(NamedTuple):
    """Say which gradients are needed."""

    x: bool
    cores: bool
    scales: bool


class Gradients(NamedTuple):
    """Hold the gradients of a call; None where not needed."""

    x: Tensor | None
    cores: Tensor | None
    scales: Tensor | None


class Layer(NamedTuple):
    """Hold the frozen layer and the factors of its update.

    Attributes
    ----------
    weight : Tensor, shape (m, n)
    bias : Tensor, shape (m,), optional
    left : Tensor, shape (m, r)
        P L.
    right : Tensor, shape (r, n)
        U.
    upper : bool
        Whether right is known to be upper trapezoidal.
    skeleton : Skeleton, optional
        The rows and columns of W that the factors are made of.
    """

    weight: Tensor
    bias: Tensor | None
    left: Tensor
    right: Tensor
    upper: bool = False
    skeleton: Skeleton | None = None


class Adapters(NamedTuple):
    """Hold the cores of adapters, and which of them each row uses.

    Attributes
    ----------
    cores : Tensor, shape (A, r), (A, r, r) or (A, g, b, b), or without A of a single one
        Diagonals, dense matrices, or g blocks on the diagonal. Where a plan takes them they are (A, r) or
        (A, g, b, b), a dense one a single block, and of float32 at least.
    of_rows : Tensor, shape (T, S), optional
        Numbers of the adapters of each row; without it every row uses the only one. A number that is no adapter's makes
        the row NaN: never another adapter's, and never a read beyond the end.
    scales : Tensor, shape (T, S), optional
        Their weights; ones if not given.
    """

    cores: Tensor
    of_rows: Tensor | None = None
    scales: Tensor | None = None
