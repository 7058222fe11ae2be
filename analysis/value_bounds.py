"""Bounds on both sides of the leading singular values of a matrix, from a subspace that is close to theirs."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch

from lowrank_ldu.analysis.lanczos_bound import largest_eigenvalue_bound
from lowrank_ldu.decomposition.gram import blocks_of_rows

if TYPE_CHECKING:
    from collections.abc import Sequence

# Ranks at which the quadratic bound is evaluated; the ones between them take the next one's.
_PLACES = 16
# Entries of W in a block: a megabyte in float32, so that it is used twice while it is in the cache.
_CACHED = 2**18
# Rounding of a product with W, relative to its norm, over eps: grows with the root of the length.
_ROUNDINGS = 4


def value_bounds(W: torch.Tensor, directions: torch.Tensor, count: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    r"""Return lower and upper bounds of the squares of the leading singular values of W.

    With V an orthonormal basis of the subspace, turned so that V^T A V = diag(theta) for A = W^T W, and with beta no
    less than the largest eigenvalue of the rest of A, that of F^T F, F = W (I - V V^T):

    - lambda_i >= theta_i (Cauchy);
    - lambda_i <= theta_i + beta (Weyl, since W W^T = (W V)(W V)^T + F F^T);
    - where t > beta for some t <= theta_i, lambda_i is at most the i-th eigenvalue of
      diag(theta) + R^T R / (t - beta), R = A V - V diag(theta): the Schur complement of the rest. The error of that is
      of the second order in R.

    Parameters
    ----------
    W : torch.Tensor, shape (m, n)
        float32 or float64, on the CPU, its entries at most 1 in magnitude.
    directions : torch.Tensor, shape (n, l)
        Orthonormal columns, close to the leading right singular vectors.
    count : int
        How many upper bounds are wanted, at most l.
    seed : int
        Of the bound beta, which holds with probability 1 - 1e-6.

    Returns
    -------
    lower : torch.Tensor, shape (l,), float64
        Not increasing.
    upper : torch.Tensor, shape (count,), float64
    """
    basis, theta, images = _turned(W, directions)
    # The rest is only multiplied with in W's own precision.
    single = basis.to(W.dtype)
    noise = _ROUNDINGS * math.sqrt(max(W.shape)) * torch.finfo(W.dtype).eps * float(theta[0])
    beta = largest_eigenvalue_bound(lambda vector: _rest_product(W, single, vector), int(W.shape[1]), seed, noise)
    residual = images - basis * theta
    coupling = residual.T @ residual
    upper = theta[:count] + beta
    start = 0
    for end in _places(count):
        if float(theta[end - 1]) > beta:
            quadratic = torch.linalg.eigvalsh(torch.diag(theta) + coupling / (float(theta[end - 1]) - beta)).flip(0)
            upper[start:end] = torch.minimum(upper[start:end], quadratic[start:end])
        start = end
    return theta, upper


def _places(count: int) -> Sequence[int]:
    return sorted({-(-count * place // _PLACES) for place in range(1, _PLACES + 1)})


def _turned(W: torch.Tensor, directions: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return the basis V in which V^T A V is diagonal, that diagonal, not increasing, and A V, all in float64.

    What the best approximation leaves is the difference of the norm of W and that diagonal: in float32 there would be
    nothing right in it where it is small.
    """
    basis = torch.linalg.qr(directions.to(torch.float64))[0]
    gram = torch.zeros(basis.shape[1], basis.shape[1], dtype=torch.float64, device="cpu")
    images = torch.zeros_like(basis)
    for rows in blocks_of_rows(W.shape):
        block = W[rows].to(torch.float64)
        product = block @ basis
        gram += product.T @ product
        images += block.T @ product
    theta, turn = torch.linalg.eigh(gram)
    turn = turn.flip(1)
    return basis @ turn, theta.flip(0).clamp(min=0.0), images @ turn


def _rest_product(W: torch.Tensor, basis: torch.Tensor, vector: torch.Tensor) -> torch.Tensor:
    """Return F^T F v in one pass over W."""

    def without(part: torch.Tensor) -> torch.Tensor:
        return part - basis @ (basis.T @ part)

    inside = without(vector.to(W.dtype))
    image = torch.zeros_like(inside)
    for rows in blocks_of_rows(W.shape, entries=_CACHED):
        image += W[rows].T @ (W[rows] @ inside)
    return without(image).to(torch.float64)
