"""Measure what of a target the span of rows and columns holds.

A target is a layer's gradient, as it is or with rows and columns of like size, or the second moments of its inputs and
outputs. The moments stand for gradients of which nothing else is known: sums of products of an output and an input that
do not depend on each other.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

import torch

from lowrank_ldu.fitting.selection import columns_for, columns_for_moment

if TYPE_CHECKING:
    from torch import Tensor

    from lowrank_ldu.fitting.selection import Chosen
    from lowrank_ldu.fitting.sums import Source


def energy_of(source: Source, W: Tensor, total: Tensor) -> GradientEnergy | MomentEnergy:
    """Return the energy of a layer's sum, which is written to.

    Parameters
    ----------
    source : str
    W : Tensor, shape (m, n)
        The layer's weight.
    total : Tensor, shape (m, n), or (n, n) of activations
    """
    if source == "activation":
        return MomentEnergy.of_layer(W.to(total.dtype), total)
    if source == "scaled_gradient":
        scale_rows_and_columns(total)
    return GradientEnergy(total)


def scale_rows_and_columns(G: Tensor) -> None:
    """Divide rows and columns by their relative sizes, in place.

    G[i, j] becomes G[i, j] / (a[i] b[j]), with a[i] the root mean square of row i over that of the matrix, and b[j] of
    column j: the scaling of Adafactor's second moments (arXiv 1804.04235, section 3). A few features of a language
    model take in or give out numbers that are far larger than all others; they would take most of the first terms.

    Examples
    --------
    >>> G = torch.tensor([[1.0, 2.0], [10.0, 20.0]])
    >>> scale_rows_and_columns(G)
    >>> bool((G - G.mean()).abs().max() < 1e-5)
    True
    """
    largest = G.abs().max()
    G /= largest  # squares of small gradients would vanish
    sizes = [torch.linalg.vector_norm(G, dim=dim, keepdim=True) / G.shape[dim] ** 0.5 for dim in (1, 0)]
    whole = torch.linalg.vector_norm(G) / G.numel() ** 0.5
    for size in sizes:
        G *= torch.where(size > 0, whole / size, 0.0)
    G *= largest


class Energy(Protocol):
    """Energy of a target, a squared Frobenius norm or its mean.

    Attributes
    ----------
    total : float
        Of the whole target, in a unit that is the same for all layers. Everything else is a share of it.
    """

    total: float

    def columns(self, W: Tensor, count: int, rows: Tensor | None = None) -> Chosen:
        """Choose columns of W, for a basis (n, k) of rows if given."""
        ...

    def rows(self, W: Tensor, count: int, columns: Tensor | None = None) -> Chosen:
        """Choose rows of W, for a basis (m, k) of columns if given."""
        ...

    def grid(self, left: Tensor, right: Tensor) -> Tensor:
        """Return the share (r, s) along each pair of columns.

        left (m, r) and right (n, s) have orthonormal columns.
        """
        ...

    def moment(self, left: Tensor, right: Tensor) -> Tensor:
        """Return the second moment (k, k) of products with k pairs.

        They are left[:, i]^T G right[:, i], for left (m, k) and right (n, k).
        """
        ...


class GradientEnergy:
    """Energy of a gradient (m, n), which is scaled in place.

    Attributes
    ----------
    G : Tensor, shape (m, n)
        The gradient, scaled to norm 1.
    scale : float
        Its norm.
    """

    def __init__(self, G: Tensor) -> None:
        largest = float(G.abs().max())
        G /= largest  # squares of small gradients would vanish
        norm = float(torch.linalg.vector_norm(G, dtype=torch.float64))
        G /= norm
        self.G = G
        self.scale = largest * norm
        self.total = self.scale**2

    def columns(self, W: Tensor, count: int, rows: Tensor | None = None) -> Chosen:
        """Choose columns of W, for a basis (n, k) of rows if given."""
        return columns_for(W, self.G if rows is None else self.G @ rows, count)

    def rows(self, W: Tensor, count: int, columns: Tensor | None = None) -> Chosen:
        """Choose rows of W, for a basis (m, k) of columns if given."""
        return columns_for(W.T.contiguous(), self.G.T if columns is None else self.G.T @ columns, count)

    def grid(self, left: Tensor, right: Tensor) -> Tensor:
        """Return the share (r, s) along each pair of columns."""
        return (left.T @ self.G @ right).double() ** 2

    def moment(self, left: Tensor, right: Tensor) -> Tensor:
        """Return the second moment (k, k) of products with k pairs."""
        along = (left * (self.G @ right)).sum(dim=0).double()
        return torch.outer(along, along)


class MomentEnergy:
    """Energy of second moments of outputs (m, m) and inputs (n, n).

    Layers have no common unit, so that every total is 1.

    Attributes
    ----------
    outputs, inputs : Tensor, shapes (m, m) and (n, n)
        Scaled to trace 1.
    """

    total = 1.0

    def __init__(self, outputs: Tensor, inputs: Tensor) -> None:
        self.outputs, self.inputs = (moment / moment.trace() for moment in (outputs, inputs))

    @classmethod
    def of_layer(cls, W: Tensor, inputs: Tensor) -> MomentEnergy:
        """Return the energy of a layer's inputs x and outputs W x."""
        return cls(W @ inputs @ W.T, inputs)

    def columns(self, W: Tensor, count: int, rows: Tensor | None = None) -> Chosen:
        """Choose columns of W; the rows have no say in it."""
        del rows
        return columns_for_moment(W, self.outputs, count)

    def rows(self, W: Tensor, count: int, columns: Tensor | None = None) -> Chosen:
        """Choose rows of W; the columns have no say in it."""
        del columns
        return columns_for_moment(W.T.contiguous(), self.inputs, count)

    def grid(self, left: Tensor, right: Tensor) -> Tensor:
        """Return the share (r, s) along each pair of columns."""
        return torch.outer(
            (left * (self.outputs @ left)).sum(dim=0).double(), (right * (self.inputs @ right)).sum(dim=0).double()
        )

    def moment(self, left: Tensor, right: Tensor) -> Tensor:
        """Return the second moment (k, k) of products with k pairs."""
        return (left.T @ self.outputs @ left).double() * (right.T @ self.inputs @ right).double()
