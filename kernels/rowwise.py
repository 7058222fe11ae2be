"""From the product a * b of every row to the gradients of the diagonals and of their scales."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from torch import Tensor


def deltas_gradient(product: Tensor, deltas: Tensor, index: Tensor | None, scales: Tensor | None) -> Tensor:
    """Return the gradient of deltas (A, r): the rows of `product` (T, r) summed by the adapters they used.

    Parameters
    ----------
    product : Tensor, shape (T, r)
        a * b, of deltas' dtype.
    deltas : Tensor, shape (A, r)
    index, scales : Tensor, shape (T, S), optional
        As for `row_diagonals`. Rows of a number that is no adapter's count for none.
    """
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


def scales_gradient(product: Tensor, deltas: Tensor, index: Tensor, scales: Tensor) -> Tensor:
    """Return the gradient of scales (T, S): of every row and use, the sum of product times the adapter's diagonal."""
    if not index.shape[1] or not len(deltas):
        return torch.full_like(scales, float("nan"))
    parts = []
    for use in range(index.shape[1]):
        chosen = index[:, use]
        known = (chosen >= 0) & (chosen < len(deltas))
        rows = (product * deltas[torch.where(known, chosen, 0)]).sum(dim=1)
        parts.append(torch.where(known, rows, float("nan")))
    return torch.stack(parts, dim=1).to(scales.dtype)
