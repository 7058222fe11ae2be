"""The definition of the adapter's path in plain torch."""

from __future__ import annotations

from typing import TYPE_CHECKING

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
        Difference of the scaled diagonals, `sigma z - sigma_0 z_ref`; any floating dtype.

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
