"""Measure the share of a matrix that a diagonal can express."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from lowrank_ldu.backend import full_precision
from lowrank_ldu.decomposition import Factorization
from lowrank_ldu.decomposition.gram import wide
from lowrank_ldu.diagnostics.measures import quiet
from lowrank_ldu.diagnostics.rank_errors import RankErrors
from lowrank_ldu.diagnostics.terms import Terms
from lowrank_ldu.validation import check_rank

if TYPE_CHECKING:
    from collections.abc import Sequence

    from lowrank_ldu.backend import Array, Backend
    from lowrank_ldu.diagnostics.target import Target


@dataclass(frozen=True)
class Expression:
    r"""Hold the shares of a matrix D that leading terms express.

    The terms are those of a factorization, l_i u_i.

    Attributes
    ----------
    explained : dict of int to float
        For each rank r asked for, 1 - min_d \|D - sum_i d_i l_i u_i\|_F^2 / \|D\|_F^2 over the first r terms, from 0
        to 1. Where terms nearly depend on each other it is what one such d reaches, and the optimum may be above it.
    independent : dict of int to int
        For each of these ranks, how many of the terms are independent: the numerical rank of their Gram matrix.
    curve : list of float or None
        The same share at the sampled ranks, for plots; None where only `explained` was worth its price.
    """

    explained: dict[int, float]
    independent: dict[int, int]
    curve: list[float | None]


@full_precision()
def express(
    target: Target, factors: Factorization, ranks: Sequence[int], curve_ranks: Sequence[int] = ()
) -> Expression:
    r"""Project a matrix on the leading terms of a factorization.

    With the terms scaled to unit norm, their Gram matrix G = C C^T and c_i = l_i^T D u_i, the share that the first r
    terms express is \|C^-1 c\|^2 / \|D\|^2 up to r, and the leading part of C is the factor of the leading part of G:
    one Cholesky factorization answers for all ranks, that of `RankErrors`. Where a term hardly stands out of the
    earlier ones, least squares by eigenvalues takes over, and the share is measured on its residual, so that it is
    never overstated.

    Parameters
    ----------
    target : Target
        Of D (m, n), such as an update of the matrix that was factored.
    factors : Factorization
        Of a matrix (m, n), with k terms; no column of left and no row of right is zero.
    ranks : sequence of int
        Ascending, each from 1 to k.
    curve_ranks : sequence of int
        Where the curve is wanted, each from 1 to k.

    Returns
    -------
    Expression
        All of the zero matrix is expressed.

    Raises
    ------
    TypeError, ValueError
        `factors` is no factorization, of another library, or of another shape; a rank is out of range.

    Examples
    --------
    >>> import numpy as np
    >>> from lowrank_ldu import ldu
    >>> from lowrank_ldu.diagnostics import Target
    >>> factors = ldu(np.array([[2.0, 1.0], [1.0, 3.0]]))
    >>> update = factors.left @ np.diag([0.0, 0.5]) @ factors.right
    >>> express(Target(update), factors, [2]).explained
    {2: 1.0}
    """
    factors, backend = target.matching(factors), target.backend
    ranks = [check_rank(rank, factors.rank, "ranks", optional=False) for rank in ranks]
    with quiet():
        left, right = wide(factors.left, backend), wide(factors.right, backend)
        # The fit starts from zero: the diagonal of the factors says nothing of another matrix.
        start = Factorization(left, backend.xp.zeros_like(left[0, :]), right)
        terms = Terms(start, backend, target.exponent)
        errors = RankErrors(target, start, terms)
        shares = errors.shares()
        explained: dict[int, float] = {}
        independent: dict[int, int] = {}
        reached = 0.0
        for rank in ranks:
            share, independent[rank] = float(shares[rank - 1]), rank
            if math.isnan(share):
                share = _share_by_residual(target, errors, rank)
                independent[rank] = _numerical_rank(terms.unit_gram[:rank, :rank], backend)
            # More terms include the fewer ones, and express no less.
            reached = explained[rank] = max(reached, share)
    sampled = [float(shares[rank - 1]) for rank in curve_ranks]
    curve = [None if math.isnan(share) else share for share in sampled]
    return Expression(explained, independent, curve)


def _share_by_residual(target: Target, errors: RankErrors, rank: int) -> float:
    norm = target.scaled_frobenius_norm
    if norm == 0.0:
        return 1.0
    left_over = errors.residual(rank) / norm
    return min(1.0, max(0.0, 1.0 - left_over * left_over))


def _numerical_rank(gram: Array, backend: Backend) -> int:
    """Count the terms of a Gram matrix that are independent."""
    xp = backend.xp
    size = xp.sqrt(xp.linalg.diagonal(gram))
    values = xp.linalg.eigvalsh(gram / size[:, None] / size[None, :])
    limit = len(values) * float(xp.finfo(values.dtype).eps) * float(values[-1])
    return int(xp.sum(xp.astype(values > limit, xp.int32)))
