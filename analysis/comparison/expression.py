"""How much of an update the diagonal of a factorization can express."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from lowrank_ldu.decomposition import Factorization, gram_matrix

if TYPE_CHECKING:
    from collections.abc import Sequence

# A unit term that stands out of the span of the earlier ones by less than this (squared) is left to the eigenvalues:
# the square root of eps leaves a Cholesky factor half of its digits.
_SAFE_SQUARED_DISTANCE = 2.0**-26


@dataclass(frozen=True)
class Expression:
    r"""What the leading terms l_i u_i of a factorization express of an update D.

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


def express(
    update: torch.Tensor, factors: Factorization, ranks: Sequence[int], curve_ranks: Sequence[int]
) -> Expression:
    r"""Project an update on the leading terms of a factorization, at each of `ranks` and `curve_ranks`.

    With the terms scaled to unit norm, their Gram matrix G = C C^T and c_i = l_i^T D u_i, the share that the first r
    terms explain is \|C^-1 c\|^2 / \|D\|^2 up to r, and the leading part of C is the factor of the leading part of G:
    one Cholesky factorization answers for all ranks. Where a term hardly stands out of the earlier ones, least squares
    by eigenvalues takes over, and the share is measured on its residual, so that it is never overstated.

    Parameters
    ----------
    update : torch.Tensor, shape (m, n)
        Finite, not zero, float32 or float64.
    factors : Factorization
        Of the base weight (m, n), with k terms; no column of left and no row of right is zero.
    ranks : sequence of int
        Ascending, each from 1 to k.
    curve_ranks : sequence of int
        Where the curve is wanted, each from 1 to k.

    Returns
    -------
    Expression

    Examples
    --------
    >>> from lowrank_ldu import ldu
    >>> base = torch.tensor([[2.0, 1.0], [1.0, 3.0]])
    >>> factors = ldu(base)
    >>> update = factors.left @ torch.diag(torch.tensor([0.0, 0.5])) @ factors.right
    >>> express(update, factors, [2], [2]).explained
    {2: 1.0}
    """
    target = update.to(torch.float64)
    target = target / target.abs().max()
    terms = _unit_terms(factors)
    gram = gram_matrix(terms.left, terms.right)
    shares = _nested_shares(target, terms, gram)
    explained: dict[int, float] = {}
    independent: dict[int, int] = {}
    reached = 0.0
    for rank in ranks:
        share, independent[rank] = float(shares[rank - 1]), rank
        if math.isnan(share):
            share = _share_by_residual(target, terms.truncate(rank))
            independent[rank] = _numerical_rank(gram[:rank, :rank])
        # The fewer terms are among the more, so what they reach is reached.
        reached = explained[rank] = max(reached, share)
    sampled = [float(shares[rank - 1]) for rank in curve_ranks]
    curve = [None if math.isnan(share) else share for share in sampled]
    return Expression(explained, independent, curve)


def _unit_terms(factors: Factorization) -> Factorization:
    """Return the terms in float64, scaled to unit norm: those of triangular factors differ by orders of magnitude."""
    left, right = factors.left.to(torch.float64), factors.right.to(torch.float64)
    return Factorization(
        left / torch.linalg.vector_norm(left, dim=0),
        torch.ones(factors.rank, dtype=torch.float64),
        right / torch.linalg.vector_norm(right, dim=1)[:, None],
    )


def _nested_shares(target: torch.Tensor, terms: Factorization, gram: torch.Tensor) -> torch.Tensor:
    """Return the share at every rank (k,); NaN from the first term on that hardly stands out of the earlier ones."""
    overlap = torch.sum((terms.left.T @ target) * terms.right, dim=1)
    cholesky, failed_at = torch.linalg.cholesky_ex(gram)
    solved = torch.linalg.solve_triangular(cholesky, overlap[:, None], upper=False)[:, 0]
    shares = torch.cumsum(solved * solved, 0) / torch.sum(target * target)
    close = ~(torch.diagonal(cholesky) ** 2 > _SAFE_SQUARED_DISTANCE)
    if int(failed_at):
        close[int(failed_at) - 1 :] = True
    shares[torch.cumsum(close, 0) > 0] = torch.nan
    return shares.clamp(0.0, 1.0)


def _share_by_residual(target: torch.Tensor, terms: Factorization) -> float:
    residual = terms.fit(target).residual(target)
    left_over = float(torch.sum(residual * residual) / torch.sum(target * target))
    return min(1.0, max(0.0, 1.0 - left_over))


def _numerical_rank(gram: torch.Tensor) -> int:
    values = torch.linalg.eigvalsh(gram)
    return int(torch.sum(values > len(values) * torch.finfo(values.dtype).eps * values[-1]))
