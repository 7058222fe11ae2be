"""Define the layer in plain torch.

Every other plan has to compute the same.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch.nn.functional import linear

if TYPE_CHECKING:
    from torch import Tensor

    from lowrank_ldu.kernels.call import Adapters, Layer


def ldu_update(x: Tensor, left: Tensor, right: Tensor, delta: Tensor) -> Tensor:
    """Return x (left diag(delta) right)^T, the update of a linear layer's output.

    Parameters
    ----------
    x : Tensor, shape (..., n)
    left : Tensor, shape (m, r)
        P L, constant.
    right : Tensor, shape (r, n)
        U, constant, of left's dtype.
    delta : Tensor, shape (r,)
        Difference of the scaled diagonals, `sigma z - sigma_0 z_ref`; any floating dtype. Or one for each row, in a
        shape that x right^T (..., r) multiplies with.

    Returns
    -------
    Tensor, shape (..., m)

    Notes
    -----
    T r (m + n) multiply-adds for T rows. The gradient of delta needs x right^T (T x r) only; as left and right take
    no gradient, autograd keeps that and not x. Equation (9) of arXiv 2410.13618, less what the frozen weight gives.

    Examples
    --------
    >>> import torch
    >>> ldu_update(torch.tensor([1.0, 2.0]), torch.tensor([[1.0], [3.0]]), torch.tensor([[1.0, 1.0]]), torch.ones(1))
    tensor([3., 9.])
    """
    projected = linear(x, right)
    return linear(projected * delta.to(projected.dtype), left)


def reference_linear(x: Tensor, layer: Layer, adapters: Adapters) -> Tensor:
    """Return the output for x (T, n).

    It is x W^T + b + ((x right^T) * delta) left^T.

    Rows have the diagonals of `row_diagonals`. Everything has a gradient here, of any order.
    """
    base = linear(x, layer.weight, layer.bias)
    return base + ldu_update(x, layer.left, layer.right, row_diagonals(adapters))


def row_diagonals(adapters: Adapters) -> Tensor:
    """Return the diagonal of every row (T, r).

    If there is only one, it comes as it is.
    """
    deltas, index, scales = adapters
    if index is None:
        return deltas
    if not len(deltas):
        # Nothing to gather from; still a function of deltas, so that there is a gradient.
        nothing = deltas.new_full((index.shape[0], deltas.shape[1]), float("nan") if index.shape[1] else 0.0)
        return nothing + deltas.sum(dim=0)
    known = (index >= 0) & (index < len(deltas))
    rows = deltas[torch.where(known, index, 0)]
    rows = torch.where(known[..., None], rows, float("nan"))
    if scales is not None:
        rows = rows * scales[..., None].to(rows.dtype)
    return rows[:, 0] if index.shape[1] == 1 else rows.sum(dim=1)


def deltas_gradient(product: Tensor, adapters: Adapters) -> Tensor:
    """Return the gradient of deltas (A, r).

    It sums the rows that used each adapter.

    Parameters
    ----------
    product : Tensor, shape (T, r)
        a * b, of deltas' dtype.
    adapters : Adapters
        Rows of a number that is no adapter's add to none.
    """
    deltas, index, scales = adapters
    if index is None:
        return product.sum(dim=0, keepdim=True)
    total = torch.zeros_like(deltas)
    if not len(deltas):
        return total
    for use in range(index.shape[1]):
        chosen = index[:, use]
        known = (chosen >= 0) & (chosen < len(deltas))
        rows = product if scales is None else product * scales[:, use, None].to(product.dtype)
        total.index_add_(0, torch.where(known, chosen, 0), torch.where(known[:, None], rows, 0))
    return total


def scales_gradient(product: Tensor, adapters: Adapters) -> Tensor:
    """Return the gradient of scales (T, S).

    It sums product times the adapters' diagonals.
    """
    deltas, index, scales = adapters
    assert index is not None  # noqa: S101  # scales are of an index
    assert scales is not None  # noqa: S101
    if not index.shape[1] or not len(deltas):
        return torch.full_like(scales, float("nan"))
    parts = []
    for use in range(index.shape[1]):
        chosen = index[:, use]
        known = (chosen >= 0) & (chosen < len(deltas))
        rows = (product * deltas[torch.where(known, chosen, 0)]).sum(dim=1)
        parts.append(torch.where(known, rows, float("nan")))
    return torch.stack(parts, dim=1).to(scales.dtype)
