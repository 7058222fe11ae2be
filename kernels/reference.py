"""Define the layer in plain torch.

Every other plan has to compute the same.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch.nn.functional import linear

from lowrank_ldu.kernels.cores import apply_cores, row_cores

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

    It is x W^T + b + (x right^T) K^T left^T.

    Rows have the cores of `row_cores`. Everything has a gradient here, of any order.
    """
    base = linear(x, layer.weight, layer.bias)
    if adapters.cores.ndim == 2:
        return base + ldu_update(x, layer.left, layer.right, row_cores(adapters))
    return base + linear(apply_cores(linear(x, layer.right), adapters), layer.left)
