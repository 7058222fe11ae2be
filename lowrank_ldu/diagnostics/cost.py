"""Count what factorizations and adapters cost: operations and stored numbers."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lowrank_ldu.decomposition import LDU, SVD, PiSSA
from lowrank_ldu.validation import check_count

if TYPE_CHECKING:
    from lowrank_ldu.decomposition import Factorization

# Numbers in an adapter's file that recognize the base: entries of the weight, which tell another base from a rounding
# of the same one, and products of the update with fixed vectors of signs.
SAMPLES, PROBES = 32, 32


def factor_flops(factors: Factorization, rank: int) -> int:
    """Count the operations that factoring to `rank` terms takes.

    With k = min(m, n) and l = max(m, n):

    - partial: getrf of the panel and trsm, m r^2 - r^3 / 3 + r^2 (n - r);
    - rook: the same, the columns and rows that its search forms counted once;
    - randomized: the same, and 2 s m n for a sketch of s = min(r, 64) + 8 rows;
    - complete: the rank-one updates, 2 m n r; comparisons are not counted;
    - of a product: two eliminations of r columns and the products around them, 4 (m + n) r^2;
    - near-best: that of the product, and with the default sketch of s = r + 8 columns 10 m n s for its products with W
      and 18 s^2 (m + n) for its two Gram matrices;
    - svd, pissa, exact: 6 l k^2 + 20 k^3, whatever the rank (Golub and Van Loan, Matrix Computations, R-SVD);
    - svd, pissa, randomized with q power iterations: 4 (q + 1) m n w products with the w = r sketched columns.

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
    if isinstance(factors, LDU) and factors.origin != "weight":
        of_product = 4 * (m + n) * rank**2
        sketched = rank + 8
        near_best = 10 * m * n * sketched + 18 * sketched**2 * (m + n)
        return of_product + (near_best if factors.origin == "lowrank" else 0)
    pivoting = factors.pivoting if isinstance(factors, LDU) else None
    if pivoting == "complete":
        return 2 * m * n * rank
    if pivoting == "randomized":
        return eliminate + 2 * (min(rank, 64) + 8) * m * n
    return eliminate


def apply_flops(m: int, n: int, rank: int) -> int:
    """Count the operations of L (z * (U x)) per input vector.

    Examples
    --------
    >>> apply_flops(768, 768, 64)
    196672
    """
    return 2 * rank * (m + n) + rank


def factor_numbers(method: str, m: int, n: int, rank: int) -> int:
    """Count the numbers that a weight's factors are stored in.

    - "ldu", "ldu_lowrank": L below its unit diagonal and diag(z) U from its diagonal on, in the order of the pivots,
      r (m + n - r); and the pivots, r rows and r columns, an index counted as a number;
    - "ldu_core": the same, and the r x r core;
    - "svd": both factors and the singular values, r (m + n + 1).

    Examples
    --------
    >>> [factor_numbers(method, 8, 6, 2) for method in ("ldu", "ldu_core", "svd")]
    [28, 32, 30]
    """
    if method == "svd":
        return rank * (m + n + 1)
    packed = rank * (m + n - rank) + 2 * rank
    return packed + rank * rank if method == "ldu_core" else packed


def stored_numbers(rank: int) -> int:
    """Count the numbers that `save_adapter` writes for a layer.

    With the default options, whatever its shape.

    Offset and pivots, r each, sigma and its start, and the two samples that tell a changed base from the right one.

    Parameters
    ----------
    rank : int
        r, at least 1.

    Raises
    ------
    TypeError, ValueError
        `rank` is no integer from 1 on.

    Examples
    --------
    >>> stored_numbers(8), stored_numbers(64)
    (82, 194)
    """
    check_count(rank, "rank", 1)
    return 2 * rank + 2 + SAMPLES + PROBES
