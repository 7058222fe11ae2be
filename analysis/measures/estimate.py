"""Estimate leading singular values with bounds.

The values are those of a weight, the bounds those of their errors.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

from lowrank_ldu.analysis.measures.spectrum import Spectrum, zero_spectrum
from lowrank_ldu.decomposition import svd
from lowrank_ldu.decomposition.elimination import in_host_memory
from lowrank_ldu.decomposition.gram import blocks_of_rows
from lowrank_ldu.diagnostics import Target

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

# The probability that the bound does not hold. More steps bring it closer: with 24 of them in 4096 dimensions it is at
# most 1.2 times the eigenvalue, with 16 1.6 times, with 12 3 times.
FAILURE = 1e-6
STEPS = 24


def largest_eigenvalue_bound(
    multiply: Callable[[torch.Tensor], torch.Tensor], size: int, seed: int, noise: float
) -> float:
    r"""Return an upper bound of the largest eigenvalue.

    It holds with probability 1 - 1e-6 over the starts.

    Lanczos's iteration from a random start gives a lower bound xi of it. Kuczynski and Wozniakowski (SIAM J. Matrix
    Anal. Appl. 13, 1992, theorem 4.2): after j steps in n dimensions xi < (1 - epsilon) lambda has a probability of at
    most 1.648 sqrt(n) exp(-sqrt(epsilon) (2 j - 1)).

    Parameters
    ----------
    multiply : callable
        From a vector (n,) in float64 to the product with a symmetric positive semidefinite matrix.
    size : int
        n.
    seed : int
        Draws the start.
    noise : float
        How far rounding can take a product with a unit vector from the true one. It is added to the bound.

    Examples
    --------
    >>> diagonal = torch.linspace(0, 1, 1000, dtype=torch.float64)
    >>> 1.0 <= largest_eigenvalue_bound(lambda vector: diagonal * vector, 1000, 0, 1e-12) < 1.2
    True
    """
    steps = min(STEPS, size)
    alphas, betas = _lanczos(multiply, size, seed, steps)
    tridiagonal = np.diag(alphas) + np.diag(betas, 1) + np.diag(betas, -1)
    estimate = max(float(np.linalg.eigvalsh(tridiagonal)[-1]), 0.0)
    # In as many steps as dimensions the iteration finds all eigenvalues.
    if size < STEPS:
        return estimate + noise
    shortfall = (math.log(1.648 * math.sqrt(size) / FAILURE) / (2 * STEPS - 1)) ** 2
    return estimate / (1 - shortfall) + noise


def _lanczos(
    multiply: Callable[[torch.Tensor], torch.Tensor], size: int, seed: int, steps: int
) -> tuple[list[float], list[float]]:
    """Return the diagonals of Lanczos's tridiagonal matrix.

    Each vector is made orthogonal to all before it.

    Small residuals do not end it: a start can have so little of the largest eigenvalue's vector that they do not show
    it. Directions that are nothing but rounding do no harm.
    """
    start = np.random.default_rng(seed).standard_normal(size)
    vector = torch.from_numpy(start / np.linalg.norm(start))
    basis: list[torch.Tensor] = []
    alphas: list[float] = []
    betas: list[float] = []
    while True:
        basis.append(vector)
        image = multiply(vector)
        alphas.append(float(image @ vector))
        stacked = torch.stack(basis)
        for _ in range(2):  # the second pass removes rounding
            image = image - stacked.T @ (stacked @ image)
        beta = float(torch.linalg.vector_norm(image))
        if len(basis) == steps or beta == 0.0:
            return alphas, betas
        betas.append(beta)
        vector = image / beta


# Ranks at which the quadratic bound is evaluated; the ones between them take the next one's.
_PLACES = 16
# Entries of W in a block: a megabyte in float32, so that it is used twice while it is in the cache.
_CACHED = 2**18
# Rounding of a product with W, relative to its norm, over eps: grows with the root of the length.
_ROUNDINGS = 4


def value_bounds(W: torch.Tensor, directions: torch.Tensor, count: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    r"""Bound the squares of the leading singular values of W.

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
        float32 or float64, its entries at most 1 in magnitude, on a device that has float64.
    directions : torch.Tensor, shape (n, l)
        Orthonormal columns, close to the leading right singular vectors.
    count : int
        How many upper bounds are wanted, at most l.
    seed : int
        Of the bound beta, which holds with probability 1 - 1e-6.

    Returns
    -------
    lower : torch.Tensor, shape (l,), float64, on the CPU
        Not increasing.
    upper : torch.Tensor, shape (count,), float64, on the CPU
    """
    basis, values, images = _turned(W, directions)
    residual = images - basis * values
    # What is small goes on where its steps cost the least.
    theta, coupling = values.to("cpu"), (residual.T @ residual).to("cpu")
    # Products with the rest are computed in W's own precision.
    single = basis.to(W.dtype)
    noise = _ROUNDINGS * math.sqrt(max(W.shape)) * torch.finfo(W.dtype).eps * float(theta[0])
    beta = largest_eigenvalue_bound(
        lambda vector: _rest_product(W, single, vector.to(W.device)).to("cpu"), int(W.shape[1]), seed, noise
    )
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
    """Return the basis V that makes V^T A V diagonal.

    With that diagonal, not increasing, and A V, all in float64.

    What the best approximation leaves is the difference of the norm of W and that diagonal: in float32 there would be
    nothing right in it where it is small.
    """
    basis = torch.linalg.qr(directions.to(torch.float64))[0]
    gram = torch.zeros(basis.shape[1], basis.shape[1], dtype=torch.float64, device=basis.device)
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
    for rows in blocks_of_rows(W.shape, entries=_CACHED if in_host_memory(W) else W.numel()):
        image += W[rows].T @ (W[rows] @ inside)
    return without(image).to(torch.float64)


# Power iterations. The sketch has twice the largest rank in columns, and at least this many more; the bounds come from
# the columns beyond the rank.
NITER = 2
OVERSAMPLING = 16


@dataclass(frozen=True)
class Estimate:
    """Hold the figures of a randomized SVD.

    Attributes
    ----------
    spectrum : Spectrum
    target : Target
        The matrix with its leading singular values, for the figures of factorizations.
    """

    spectrum: Spectrum
    target: Target


def sketch_width(ranks: Sequence[int]) -> int:
    """Return the width of the sketch for some ranks.

    Examples
    --------
    >>> sketch_width([2, 8]), sketch_width([64])
    (24, 128)
    """
    largest = max(ranks)
    return max(2 * largest, largest + OVERSAMPLING)


def estimate_spectrum(W: torch.Tensor, ranks: Sequence[int], seed: int) -> Estimate:
    r"""Estimate the leading singular values of a matrix, with bounds (`value_bounds`).

    Parameters
    ----------
    W : torch.Tensor, shape (m, n)
        float32 or float64, on a device that has float64.
    ranks : sequence of int
        Where the energy is wanted; `sketch_width` of them is below min(m, n).
    seed : int
        Draws the sketch and the start of the bound's iteration.
    """
    factors = svd(W, sketch_width(ranks), niter=NITER, oversampling=0, seed=seed)
    largest = float(W.abs().max())
    if largest == 0.0:
        return Estimate(zero_spectrum(ranks), Target(W, leading_values=factors.diagonal))
    # By a power of two, which is exact, to entries whose squares neither overflow nor vanish.
    scale = 2.0 ** math.frexp(largest)[1]
    lower, upper = value_bounds(W / scale, factors.right.T, max(ranks), seed)
    target = Target(W, leading_values=(lower.sqrt() * scale).to(W.device))
    norm = target.frobenius_norm / scale
    held, at_most = lower.cumsum(0) / norm**2, upper.cumsum(0) / norm**2
    rest = max(1.0 - float(held[-1]), 0.0)
    energy = {rank: min(float(held[rank - 1]), 1.0) for rank in ranks}
    return Estimate(
        Spectrum(
            largest=float(lower[0]) ** 0.5 * scale,
            smallest=None,
            stable_rank=norm**2 / float(lower[0]),
            entropy=None,
            effective_rank=None,
            energy=energy,
            # The energy outside the subspace is at most that of the rest.
            energy_bound={rank: min(float(at_most[rank - 1]), held_ + rest, 1.0) for rank, held_ in energy.items()},
        ),
        target,
    )
