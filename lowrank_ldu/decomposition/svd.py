"""Compute exact and randomized singular value decompositions."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from lowrank_ldu.backend import ArrayType, full_precision
from lowrank_ldu.decomposition.factorization import Factorization
from lowrank_ldu.decomposition.powers import exponents_of_extremes
from lowrank_ldu.validation import RANK_KEYWORDS, check_count, check_matrix, check_rank, explain_keywords

if TYPE_CHECKING:
    from lowrank_ldu.backend import Array, Backend


@dataclass(frozen=True, eq=False)
class SVD(Factorization[ArrayType]):
    """Hold a singular value decomposition.

    Left and right have orthonormal columns and rows.

    Attributes
    ----------
    left : array, shape (..., m, r)
        Left singular vectors, as columns.
    diagonal : array, shape (..., r)
        Singular values, not increasing.
    right : array, shape (..., r, n)
        Right singular vectors, as rows.
    niter : int or None
        Power iterations of the randomized algorithm; None if exact.
    """

    niter: int | None = None


@explain_keywords(RANK_KEYWORDS)
@full_precision()
def svd(
    W: ArrayType, rank: int | None = None, *, niter: int | None = None, oversampling: int = 8, seed: int = 0
) -> SVD[ArrayType]:
    """Return the leading `rank` terms of the singular value decomposition.

    Parameters
    ----------
    W : array, shape (..., m, n)
        As for `ldu`.
    rank : int, optional
        r, from 1 to k = min(m, n); k if not given.
    niter : int, optional
        None (default): exact. An integer >= 0: the randomized algorithm with that many power iterations.
    oversampling : int
        Extra columns of the random sketch, >= 0; used with `niter` only.
    seed : int
        Draws the sketch; used with `niter` only.

    Returns
    -------
    SVD

    Raises
    ------
    TypeError, ValueError
        As for `ldu`; also where niter or oversampling is negative, or where the singular values of W could exceed the
        largest number of its dtype.

    Notes
    -----
    The exact one costs O(m n k); the randomized one (Halko, Martinsson and Tropp, SIAM Review 53, 2011, algorithms 4.4
    and 5.1) 2 (niter + 1) products of W with r + oversampling columns.

    Examples
    --------
    >>> import numpy as np
    >>> svd(np.diag([1.0, 3.0]), 1).diagonal
    array([3.])
    """
    W, backend = check_matrix(W)
    rank = check_rank(rank, min(int(size) for size in W.shape[-2:]))
    check_count(oversampling, "oversampling")
    check_count(seed, "seed")
    _check_range(W, backend)

    def leading(matrices: Array) -> SVD:
        if niter is None:
            left, values, right = backend.xp.linalg.svd(matrices, full_matrices=False)
            copy = backend.xp.asarray  # a view would keep all k vectors alive
            return SVD(
                *(copy(part, copy=True) for part in (left[..., :rank], values[..., :rank], right[..., :rank, :]))
            )
        width = min(rank + oversampling, *(int(size) for size in matrices.shape[-2:]))
        return _randomized(matrices, width, check_count(niter, "niter"), seed, backend).truncate(rank)

    exponents = exponents_of_extremes(W, backend)
    if not exponents.any():
        return leading(W)
    scaled = np.ldexp(np.asarray(backend.to_numpy(W)), -exponents[..., None, None])
    factors = leading(backend.from_numpy(scaled, W))
    values = np.ldexp(np.asarray(backend.to_numpy(factors.diagonal)), exponents[..., None])
    return replace(factors, diagonal=backend.from_numpy(values, W))


def _check_range(W: Array, backend: Backend) -> None:
    xp = backend.xp
    largest = float(xp.max(xp.abs(W)))
    limit = float(xp.finfo(W.dtype).max) / math.sqrt(W.shape[-2] * W.shape[-1])
    if largest > limit:
        raise ValueError(
            f"W has entries up to {largest:.3g}, so that its singular values may overflow; accepted: at most "
            f"{limit:.3g} for this shape and dtype"
        )


def _randomized(W: Array, width: int, niter: int, seed: int, backend: Backend) -> SVD:
    xp = backend.xp
    gaussian = np.random.default_rng(seed).standard_normal((int(W.shape[-1]), width)).astype(np.float32)
    basis = _orthonormal(W @ xp.astype(backend.from_numpy(gaussian, W), W.dtype), backend)
    for _ in range(niter):
        basis = _orthonormal(xp.matrix_transpose(W) @ basis, backend)
        basis = _orthonormal(W @ basis, backend)
    inner, values, right = xp.linalg.svd(xp.matrix_transpose(basis) @ W, full_matrices=False)
    return SVD(basis @ inner, values, right, niter)


def _orthonormal(matrix: Array, backend: Backend) -> Array:
    return backend.xp.linalg.qr(matrix)[0]
