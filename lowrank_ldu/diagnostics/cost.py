"""What the factorisations cost, in additions and multiplications, leading order."""

from __future__ import annotations

from lowrank_ldu.decomposition import LDU, SVD, Factorization, PiSSA


def factor_flops(factors: Factorization, rank: int) -> int:
    """Return the operations that `rank` terms of this kind of factorisation cost.

    With k = min(m, n) and l = max(m, n):

    - partial: getrf of the panel and trsm, m r^2 - r^3 / 3 + r^2 (n - r);
    - rook: the same, the columns and rows that its search forms counted once;
    - randomized: the same, and 2 s m n for a sketch of s = min(r, 64) + 8 rows;
    - complete: the rank-one updates, 2 m n r; comparisons are not counted;
    - svd, pissa, exact: 6 l k^2 + 20 k^3, whatever the rank (Golub and Van Loan, Matrix Computations, R-SVD);
    - svd, pissa, randomised with q power iterations: 4 (q + 1) m n w products with the w = r sketched columns.

    Examples
    --------
    >>> import numpy as np
    >>> from lowrank_ldu import ldu
    >>> factor_flops(ldu(np.eye(6, 4), 3), 3)
    54
    """
    m, n = factors.shape[-2:]
    k, longest = min(m, n), max(m, n)
    if isinstance(factors, (SVD, PiSSA)):
        if factors.niter is None:
            return 6 * longest * k**2 + 20 * k**3
        return 4 * (factors.niter + 1) * m * n * rank
    eliminate = m * rank**2 - rank**3 // 3 + rank**2 * (n - rank)
    pivoting = factors.pivoting if isinstance(factors, LDU) else None
    if pivoting == "complete":
        return 2 * m * n * rank
    if pivoting == "randomized":
        return eliminate + 2 * (min(rank, 64) + 8) * m * n
    return eliminate


def apply_flops(m: int, n: int, rank: int) -> int:
    """Return the operations per input vector of L (z * (U x)).

    Examples
    --------
    >>> apply_flops(768, 768, 64)
    196672
    """
    return 2 * rank * (m + n) + rank
