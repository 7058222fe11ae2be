"""Split the principal part of a weight as PiSSA does."""

from __future__ import annotations

from dataclasses import dataclass

from lowrank_ldu.backend import ArrayType, backend_of, full_precision
from lowrank_ldu.decomposition.factorization import Factorization
from lowrank_ldu.decomposition.svd import SVD, svd
from lowrank_ldu.validation import RANK_KEYWORDS, explain_keywords


@dataclass(frozen=True, eq=False)
class PiSSA(Factorization[ArrayType]):
    """Hold principal singular values and vectors, split evenly.

    `residual(W)` is the part that PiSSA freezes.

    Attributes
    ----------
    left : array, shape (..., m, r)
        B = U sqrt(S), LoRA's lora_B.
    diagonal : array, shape (..., r)
        Ones: the singular values are in the two factors.
    right : array, shape (..., r, n)
        A = sqrt(S) V^T, LoRA's lora_A.
    niter : int or None
        Power iterations of the randomized algorithm; None if exact.
    """

    niter: int | None = None


@explain_keywords(RANK_KEYWORDS)
@full_precision()
def pissa(
    W: ArrayType, rank: int | None = None, niter: int | None = None, *, oversampling: int = 0, seed: int = 0
) -> PiSSA[ArrayType]:
    """Return PiSSA's initialization of a LoRA pair.

    left = U sqrt(S) and right = sqrt(S) V^T.

    Parameters
    ----------
    W : array, shape (..., m, n)
        As for `ldu`.
    rank : int, optional
        r, from 1 to k = min(m, n); k if not given.
    niter : int, optional
        None: exact SVD. An integer: power iterations of the quick start, as in PEFT's "pissa_niter_4".
    oversampling, seed : int
        As for `svd`. No oversampling by default, which is what PEFT's quick start does.

    Returns
    -------
    PiSSA

    Raises
    ------
    TypeError, ValueError
        As for `svd`.

    Notes
    -----
    Meng, Wang and Zhang, arXiv 2404.02948, equations (2) to (4).

    Examples
    --------
    >>> import numpy as np
    >>> pissa(np.diag([1.0, 4.0]), 1).reconstruct()
    array([[0., 0.],
           [0., 4.]])
    """
    return split_evenly(svd(W, rank, niter=niter, oversampling=oversampling, seed=seed))


def split_evenly(factors: SVD[ArrayType]) -> PiSSA[ArrayType]:
    """Split a singular value decomposition as PiSSA does.

    Each factor takes the root of the values.

    Examples
    --------
    >>> import numpy as np
    >>> split_evenly(svd(np.diag([1.0, 4.0]), 1)).left
    array([[0.],
           [2.]])
    """
    xp = backend_of(factors.diagonal).xp
    root = xp.sqrt(factors.diagonal)
    return PiSSA(
        factors.left * root[..., None, :], xp.ones_like(root), root[..., :, None] * factors.right, factors.niter
    )
