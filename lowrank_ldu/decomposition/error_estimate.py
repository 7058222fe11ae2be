"""Bound the error of a factorization from few products with the matrix."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from lowrank_ldu.backend import full_precision
from lowrank_ldu.decomposition.factorization import Factorization
from lowrank_ldu.decomposition.gram import wide
from lowrank_ldu.validation import check_count, check_instance, check_like

if TYPE_CHECKING:
    from lowrank_ldu.backend import Array

# The t < 1 with t e^(1 - t) = 10^-2, rounded down.
_LEAST_SHARE = 0.003692403


@dataclass(frozen=True)
class ErrorEstimate:
    """Hold what random vectors tell of W - left diag(z) right.

    Attributes
    ----------
    frobenius : float
        Estimate of the Frobenius norm, whose square has the right mean.
    frobenius_bound, spectral_bound : float
        What the Frobenius and the spectral norm exceed with at most the probability below, each.
    failure_probability : float
        10 ** -samples.
    """

    frobenius: float
    frobenius_bound: float
    spectral_bound: float
    failure_probability: float


@full_precision()
def estimate_error(W: Array, factors: Factorization, *, samples: int = 10, seed: int = 0) -> ErrorEstimate:
    r"""Estimate and bound the error of factors of a matrix.

    Parameters
    ----------
    W : array, shape (m, n)
        As for `ldu`, of the library of the factors.
    factors : Factorization
        Of any kind, of the shape of W.
    samples : int
        k, how many Gaussian vectors W is multiplied with, from 1 on.
    seed : int
        Draws them. It must not be the one that the factors were drawn from, for the bounds to hold.

    Returns
    -------
    ErrorEstimate

    Raises
    ------
    TypeError, ValueError
        As for `ldu`; also where shapes differ, or where W is a stack.

    Notes
    -----
    With E the error, g_i Gaussian vectors and k of them: \|E\|_2 <= 10 sqrt(2 / pi) max \|E g_i\| but with
    probability 10^-k (Halko, Martinsson and Tropp, SIAM Review 53, 2011, lemma 4.1 and equation 4.3). The mean of
    \|E g_i\|^2 is \|E\|_F^2. That it is below t \|E\|_F^2 has at most probability (t e^(1 - t))^(k / 2), by Chernoff's
    bound and since prod(1 + 2 s a_i) >= 1 + 2 s sum(a_i): the worst E is of rank 1. With t where that is 10^-k,
    \|E\|_F <= sqrt(mean / t), 16.5 times the estimate.

    It costs k products of W with a vector. The exact error costs m n r operations.

    Examples
    --------
    >>> import numpy as np
    >>> from lowrank_ldu import ldu_lowrank
    >>> W = np.diag([5.0, 4.0, 0.3, 0.4])
    >>> estimate = estimate_error(W, ldu_lowrank(W, 2), seed=1)
    >>> 0.5 < estimate.frobenius_bound, 0.4 < estimate.spectral_bound
    (True, True)
    """
    check_instance(factors, "factors", Factorization)
    check_count(samples, "samples", 1)
    check_count(seed, "seed")
    W, backend = check_like(W, factors.left)
    if W.ndim != 2:
        raise ValueError(f"W has shape {tuple(W.shape)}; accepted: a single matrix (m, n)")
    if tuple(W.shape) != tuple(factors.shape):
        raise ValueError(f"W has shape {tuple(W.shape)}; accepted: a matrix {tuple(factors.shape)}, as was factored")
    xp = backend.xp
    gaussian = np.random.default_rng(seed).standard_normal((int(W.shape[1]), samples))
    vectors = xp.astype(backend.from_numpy(gaussian, W), W.dtype)
    left, diagonal, right = (wide(part, backend) for part in (factors.left, factors.diagonal, factors.right))
    of_factors = left @ (diagonal[:, None] * (right @ wide(vectors, backend)))
    images = np.asarray(backend.to_numpy(wide(W @ vectors, backend) - of_factors))
    largest = np.abs(images).max()
    unit = float(largest) or 1.0
    norms = np.linalg.norm(images / unit, axis=0)
    mean = float((norms**2).mean())
    return ErrorEstimate(
        frobenius=math.sqrt(mean) * unit,
        frobenius_bound=math.sqrt(mean / _LEAST_SHARE) * unit,
        spectral_bound=10 * math.sqrt(2 / math.pi) * float(norms.max()) * unit,
        failure_probability=10.0**-samples,
    )
