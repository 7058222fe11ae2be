"""Errors at all ranks at once, for plots: one pass instead of one reconstruction a rank."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from lowrank_ldu.decomposition import LDU, gram_matrix

if TYPE_CHECKING:
    from collections.abc import Sequence


@dataclass(frozen=True)
class Curve:
    r"""One LDU factorisation along its steps, at sampled ranks.

    Attributes
    ----------
    error, refit_error : list of float or None
        \|W - L diag(z) U\|_F / \|W\|_F of the leading terms, with their own diagonal and with the one that is best for
        them; rounding below about 1e-7. None where terms depend on each other so closely that this method has no
        answer, and for the zero matrix.
    pivot : list of float
        Magnitude of the diagonal at that step, in the weight's unit.
    """

    error: list[float | None]
    refit_error: list[float | None]
    pivot: list[float]


def sample_ranks(k: int, count: int = 96) -> list[int]:
    """Return up to `count` ranks from 1 to k, evenly spaced in their logarithm, both ends included.

    Examples
    --------
    >>> sample_ranks(1000, 4)
    [1, 10, 100, 1000]
    """
    return sorted({round(k ** (i / (count - 1))) for i in range(count)})


def svd_curve(values: torch.Tensor, ranks: Sequence[int]) -> list[float | None]:
    """Return the least relative Frobenius error of any matrix of each rank, from the singular values (k,)."""
    squares = values.to(torch.float64) ** 2
    tails = squares.sum() - torch.cumsum(squares, 0)
    tails[-1] = 0.0
    return _relative(tails, float(squares.sum()), ranks)


def ldu_curve(W: torch.Tensor, factors: LDU, ranks: Sequence[int]) -> Curve:
    r"""Return the errors of the leading terms of `factors`, which is of full rank, at each of `ranks`.

    With the Gram matrix G of the terms and h_i = l_i^T W u_i, the squared error of the first r terms is
    \|W\|^2 - 2 z^T h + z^T G z, a sum that runs along r. For the best diagonal it is \|W\|^2 - \|C^-1 h\|^2 with
    G = C C^T, and the leading part of the Cholesky factor C is that of the leading part of G.
    """
    left, z, right = (part.to(torch.float64) for part in (factors.left, factors.diagonal, factors.right))
    target = W.to(torch.float64)
    energy = float(torch.sum(target * target))
    overlap = torch.sum((left.T @ target) * right, dim=1)
    gram = gram_matrix(left, right)
    size = torch.sqrt(torch.diagonal(gram))

    products = gram * z[:, None] * z[None, :]
    steps = torch.diagonal(products) + 2 * torch.tril(products, -1).sum(dim=1) - 2 * z * overlap
    errors = energy + torch.cumsum(steps, 0)

    cholesky, failed_at = torch.linalg.cholesky_ex(gram / size[:, None] / size[None, :])
    solved = torch.linalg.solve_triangular(cholesky, (overlap / size)[:, None], upper=False)[:, 0]
    refit_errors = energy - torch.cumsum(solved * solved, 0)
    if int(failed_at):
        refit_errors[int(failed_at) - 1 :] = math.nan
    return Curve(
        error=_relative(errors, energy, ranks),
        refit_error=_relative(refit_errors, energy, ranks),
        pivot=[abs(float(factors.diagonal[rank - 1])) for rank in ranks],
    )


def _relative(squared_errors: torch.Tensor, energy: float, ranks: Sequence[int]) -> list[float | None]:
    squares = [float(squared_errors[rank - 1]) / energy if energy else math.nan for rank in ranks]
    # Cancellation may leave less than nothing of an error that is zero.
    return [math.sqrt(max(square, 0.0)) if math.isfinite(square) else None for square in squares]
