"""How large the largest singular value of what a randomised SVD left out can be."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
import torch

from lowrank_ldu.decomposition.gram import blocks_of_rows

if TYPE_CHECKING:
    from lowrank_ldu.decomposition import SVD

# Lanczos steps, each one pass over W, and the probability that the bound does not hold. More steps bring it closer:
# at n = 4096 sixteen leave it at most 1.6 times the square of the truth, twelve 3.
_STEPS = 16
FAILURE = 1e-6
# Rounding of W's and the factors' products, relative to the largest singular value.
_ROUNDINGS = 8
# Entries of W in a block: a megabyte in float32.
_CACHED = 2**18


def residual_bound(W: torch.Tensor, factors: SVD, seed: int) -> float:
    r"""Return an upper bound of \|W - Q Q^T W\|_2, Q = factors.left, which holds with probability 1 - 1e-6.

    Lanczos iterations on E^T E, E = W - Q Q^T W, from a random start give a lower bound xi of its largest eigenvalue.
    Kuczynski and Wozniakowski (SIAM J. Matrix Anal. Appl. 13, 1992, theorem 4.2): after j steps in n dimensions
    xi < (1 - epsilon) lambda has a probability of at most 1.648 sqrt(n) exp(-sqrt(epsilon) (2 j - 1)).

    Parameters
    ----------
    W : torch.Tensor, shape (m, n)
        float32 or float64.
    factors : SVD
        Of W, randomised: `right` and `diagonal` are those of Q^T W.
    seed : int
        Draws the start.

    Notes
    -----
    Whatever E is, the bound is no more than its Frobenius norm, which follows from that of W and the diagonal.
    """
    n = int(W.shape[1])
    steps = min(_STEPS, n)
    alphas, betas = _lanczos(W, factors, seed, steps)
    tridiagonal = np.diag(alphas) + np.diag(betas, 1) + np.diag(betas, -1)
    estimate = max(float(np.linalg.eigvalsh(tridiagonal)[-1]), 0.0)
    # In as many steps as there are dimensions Lanczos has them all, and where it stops early as well.
    shortfall = (
        0.0 if len(alphas) < steps or steps == n
        else (math.log(1.648 * math.sqrt(n) / FAILURE) / (2 * len(alphas) - 1)) ** 2
    )  # fmt: skip
    rounding = _ROUNDINGS * math.sqrt(n) * torch.finfo(W.dtype).eps * float(factors.diagonal[0])
    return math.inf if shortfall >= 1 else math.sqrt(estimate / (1 - shortfall)) + rounding


def _lanczos(W: torch.Tensor, factors: SVD, seed: int, steps: int) -> tuple[list[float], list[float]]:
    """Return the tridiagonal matrix of Lanczos's iteration, each vector made orthogonal to all before it."""
    start = np.random.default_rng(seed).standard_normal(int(W.shape[1]))
    vector = torch.from_numpy(start / np.linalg.norm(start))
    basis: list[torch.Tensor] = []
    alphas: list[float] = []
    betas: list[float] = []
    while len(basis) < steps:
        basis.append(vector)
        image = _gram_product(W, factors, vector.to(W.dtype)).to(torch.float64)
        alphas.append(float(image @ vector))
        stacked = torch.stack(basis)
        for _ in range(2):  # once leaves rounding
            image = image - stacked.T @ (stacked @ image)
        beta = float(torch.linalg.vector_norm(image))
        if len(basis) == steps or beta <= _ROUNDINGS * torch.finfo(W.dtype).eps * max(0.0, *alphas):
            break
        betas.append(beta)
        vector = image / beta
    return alphas, betas


def _gram_product(W: torch.Tensor, factors: SVD, vector: torch.Tensor) -> torch.Tensor:
    """Return E^T E v in one pass over W: each block of rows is used twice while it is in the cache."""
    left, values, right = factors.left, factors.diagonal, factors.right
    inner = values * (right @ vector)
    result = torch.zeros_like(vector)
    overlap = torch.zeros_like(inner)
    for rows in blocks_of_rows(W.shape, entries=_CACHED):
        error = W[rows] @ vector - left[rows] @ inner
        result += W[rows].T @ error
        overlap += left[rows].T @ error
    return result - right.T @ (values * overlap)
