"""Factor what a basis is fitted to: a gradient, or moments."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, get_args

import torch

from lowrank_ldu.decomposition import Factorization, ldu, ldu_of_product, svd
from lowrank_ldu.validation import check_choice

if TYPE_CHECKING:
    from torch import Tensor

    from lowrank_ldu.fitting.sums import Source

BasisMethod = Literal["ldu_lowrank", "complete", "rook", "randomized", "svd"]
BASIS_METHODS: tuple[BasisMethod, ...] = get_args(BasisMethod)
_OF_MOMENTS: tuple[BasisMethod, ...] = ("complete", "svd")
# Of the near-best approximation: its error is then within 2 % of the least, on gradients and weights that were tried.
_POWER_STEPS = 2
# Terms under so many units of rounding of the largest one are no gradient: sums of any length have errors of a few.
_ROUNDING = 32


def checked_method(method: object, source: Source) -> BasisMethod:
    """Return a method that a source has; its first one for None.

    Raises
    ------
    ValueError
    """
    accepted = _OF_MOMENTS if source == "activation" else BASIS_METHODS
    if method is None:
        return accepted[0]
    check_choice(method, f"source is {source!r}, and method", accepted)
    return method  # type: ignore[return-value]


def terms_of_gradient(G: Tensor, rank: int, method: BasisMethod, seed: int) -> Factorization[Tensor]:
    """Return rank-one terms of a gradient (m, n), largest first.

    For "ldu_lowrank" they are singular parts, which `finished` makes an LDU of. There are fewer where rounding is all
    that is left of the gradient.
    """
    if method == "svd":
        factors: Factorization[Tensor] = svd(G, rank)
    elif method == "ldu_lowrank":
        factors = svd(G, rank, niter=_POWER_STEPS, seed=seed)
    else:
        factors = ldu(G, rank, pivoting=method, seed=seed)
    rounding = _ROUNDING * torch.finfo(G.dtype).eps * factors.diagonal.abs().max()
    found = int((factors.diagonal.abs() > rounding).to(torch.int64).cumprod(0).sum())
    return Factorization(factors.left, factors.diagonal, factors.right).truncate(max(found, 1))


def finished(terms: Factorization[Tensor], method: BasisMethod) -> Factorization[Tensor]:
    """Return terms of `terms_of_gradient` as a method has them."""
    if method != "ldu_lowrank":
        return terms
    factors = ldu_of_product(terms.left, terms.diagonal[:, None] * terms.right)
    return Factorization(factors.left, factors.diagonal, factors.right)


def terms_of_moments(outputs: Tensor, inputs: Tensor, rank: int, method: BasisMethod) -> Factorization[Tensor]:
    """Return terms of directions of outputs (m, m) and inputs (n, n).

    The i-th term has the i-th direction of each: by pivoted LDL^T ("complete", unit lower triangular in the order of
    pivots), or eigenvectors ("svd"). The diagonal is the geometric mean of the two directions' pivots or eigenvalues.
    There are fewer terms where rounding is all that is left of a moment.
    """
    decompose = _leading_eigenvectors if method == "svd" else pivoted_ldl
    (left, of_outputs), (right, of_inputs) = decompose(outputs, rank), decompose(inputs, rank)
    r = min(len(of_outputs), len(of_inputs))
    return Factorization(left[:, :r], of_outputs[:r].sqrt() * of_inputs[:r].sqrt(), right[:, :r].T.contiguous())


def pivoted_ldl(moment: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """Return L and D of the first terms of a pivoted LDL^T.

    Each step takes the largest entry that is left on the diagonal, the largest of all in a semidefinite matrix:
    O(n r^2) in all.

    Parameters
    ----------
    moment : Tensor, shape (n, n), symmetric and positive semidefinite
    rank : int

    Returns
    -------
    L : Tensor, shape (n, s)
        Its rows in the moment's order; L is 1 at each step's pivot.
    D : Tensor, shape (s,), positive and falling
        s < r where rounding is all that is left.

    Examples
    --------
    >>> pivoted_ldl(torch.tensor([[1.0, 1.0], [1.0, 4.0]]), 2)
    (tensor([[0.2500, 1.0000],
            [1.0000, 0.0000]]), tensor([4.0000, 0.7500]))
    """
    n = len(moment)
    left = moment.diagonal().clone()
    least = float(left.max()) * n * torch.finfo(moment.dtype).eps
    lower, pivots = moment.new_zeros(n, rank), moment.new_zeros(rank)
    done = 0
    for step in range(rank):
        pivot = int(left.argmax())
        size = left[pivot]
        if float(size) <= least:
            break
        column = (moment[:, pivot] - lower[:, :step] @ (pivots[:step] * lower[pivot, :step])) / size
        # Exact zeros at earlier pivots, where rounding may have left something.
        column = torch.where(left == -torch.inf, 0.0, column)
        column[pivot] = 1
        lower[:, step], pivots[step] = column, size
        left = left - size * column * column
        left[pivot] = -torch.inf
        done = step + 1
    return lower[:, :done], pivots[:done]


def _leading_eigenvectors(moment: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    values, vectors = torch.linalg.eigh(moment.double())
    values, vectors = values.flip(0)[:rank], vectors.flip(1)[:, :rank]
    kept = int((values > len(moment) * torch.finfo(moment.dtype).eps * values[0]).sum())
    largest = vectors.abs().argmax(dim=0)
    # Each LAPACK chooses signs of its own.
    signs = torch.sign(vectors.gather(0, largest[None]))
    return (vectors * signs)[:, :kept].to(moment.dtype), values[:kept].to(moment.dtype)
