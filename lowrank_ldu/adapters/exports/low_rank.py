"""Write a layer's update as a product of thin matrices.

The product of the two matrices is exact. With fewer columns it is the best approximation.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from lowrank_ldu.validation import check_rank

if TYPE_CHECKING:
    from torch import Tensor


def compress(left: Tensor, right: Tensor, rank: int) -> tuple[Tensor, Tensor, float]:
    """Return the best approximation of a smaller rank, and its error.

    It approximates left @ right, and the error is relative.

    Parameters
    ----------
    left, right : Tensor, shapes (m, r) and (r, n)
    rank : int
        From 1 to r.

    Returns
    -------
    B, A : Tensor, shapes (m, rank) and (rank, n)
        Singular vectors times the roots of the singular values, so that neither is larger than the other.
    error : float
        Relative, in the Frobenius norm; 0 for an update of zero.

    Notes
    -----
    Singular values of the r x r product of the triangular factors of `left` and `right`: O((m + n) r^2), and the m x n
    product is never formed. Optimal by Eckart, Young and Mirsky. Computed in float64 and rounded once.

    Examples
    --------
    >>> B, A, error = compress(torch.eye(2), torch.diag(torch.tensor([3.0, 4.0])), 1)
    >>> (B @ A).round(decimals=5), round(error, 5)
    (tensor([[0., 0.],
            [0., 4.]]), 0.6)
    """
    rank = check_rank(rank, int(left.shape[1]))
    left_basis, left_triangle = torch.linalg.qr(left.double())
    right_basis, right_triangle = torch.linalg.qr(right.double().mT)
    inner, values, outer = torch.linalg.svd(left_triangle @ right_triangle.mT, full_matrices=False)
    total = float(values.norm())
    error = float(values[rank:].norm()) / total if total else 0.0
    root = values[:rank].sqrt()
    B = (left_basis @ inner[:, :rank]) * root
    A = root[:, None] * (outer[:rank] @ right_basis.mT)
    return B.to(left.dtype), A.to(right.dtype), error
