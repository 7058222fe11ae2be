"""The definitions, in plain torch: what every other plan has to compute, and the composable way to compute it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch.nn.functional import linear

if TYPE_CHECKING:
    from torch import Tensor


def ldu_update(x: Tensor, left: Tensor, right: Tensor, delta: Tensor) -> Tensor:
    """Return x (left diag(delta) right)^T, the low-rank update of a linear layer's output.

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


def row_diagonals(deltas: Tensor, index: Tensor | None, scales: Tensor | None) -> Tensor:
    """Return the diagonal of every row, (T, r), or the only one, (1, r).

    Parameters
    ----------
    deltas : Tensor, shape (A, r)
    index : Tensor, shape (T, S), optional
        Adapters of each row. A number that is no adapter's makes the row NaN: never another adapter's, and never a
        read beyond the end.
    scales : Tensor, shape (T, S), optional
        Their weights; ones if not given.
    """
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


def reference_linear(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    left: Tensor,
    right: Tensor,
    deltas: Tensor,
    index: Tensor | None = None,
    scales: Tensor | None = None,
) -> Tensor:
    """Return x W^T + b + ((x right^T) * delta) left^T for x (T, n), with the diagonals of `row_diagonals`.

    Everything has a gradient here, of any order.
    """
    return linear(x, weight, bias) + ldu_update(x, left, right, row_diagonals(deltas, index, scales))
