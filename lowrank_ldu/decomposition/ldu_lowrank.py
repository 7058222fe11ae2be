"""Factor matrices by a near-best LDU of low rank."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from lowrank_ldu.backend import full_precision
from lowrank_ldu.decomposition.blocks import matrices_of, stacked
from lowrank_ldu.decomposition.krylov import Sketch, find_range, gram_directions, gram_is_enough, leading_directions
from lowrank_ldu.decomposition.ldu_of_product import checked_pivots, product_ldu
from lowrank_ldu.validation import (
    RANK_KEYWORDS,
    check_matrix,
    check_rank,
    check_representable,
    dtype_name,
    explain_keywords,
)

if TYPE_CHECKING:
    from lowrank_ldu.backend import Array, ArrayType, Backend
    from lowrank_ldu.decomposition.ldu import LDU
    from lowrank_ldu.decomposition.ldu_of_product import CheckedPivots, Pivots


@explain_keywords(RANK_KEYWORDS | {"q": "it is rank here, and oversampling comes on top of it"})
@full_precision()
def ldu_lowrank(
    W: ArrayType,
    rank: int,
    *,
    niter: int = 2,
    oversampling: int = 8,
    seed: int = 0,
    pivots: Pivots | None = None,
) -> LDU[ArrayType]:
    """Factor nearly the best approximation of rank r by LDU.

    `ldu(W, r)` holds the first r steps of an elimination of W itself. This holds r steps of another matrix: the best
    one of rank r, to a few thousandths of its error, as `torch.svd_lowrank` finds it.

    Parameters
    ----------
    W : array, shape (..., m, n)
        As for `ldu`.
    rank : int
        r, from 1 to min(m, n).
    niter : int
        Power iterations, at least 0. All that is passed on the way is used, so that 2 do better than 4 of
        `torch.svd_lowrank`.
    oversampling : int
        Extra columns of the random sketch, at least 0.
    seed : int
        Draws the sketch, at least 0.
    pivots : (rows, columns), optional
        Two sequences of r indices: the pivots of an earlier call with the other arguments equal, `permutation[:r]` and
        `column_permutation[:r]`. No pivots are searched then, so that another machine, or a rounded copy of W, gives
        the same factors to rounding. For a single matrix.

    Returns
    -------
    LDU
        Of rank r, with origin "lowrank". Entries of `lower` are at most 1 in magnitude, but for given pivots.

    Raises
    ------
    TypeError, ValueError
        As for `ldu`; also where niter or oversampling is negative, where a pivot is beyond the largest number of the
        dtype, or where `pivots` are out of range, repeated, of another number than `rank`, or not possible.

    Notes
    -----
    Cost: 2 niter + 1 products of W with r + oversampling columns, so 2 (2 niter + 1) m n (r + oversampling) operations,
    and O(w^2 (m + n) + w^3) with w = (niter + 1) (r + oversampling), at most min(m, n): at w = min(m, n) the
    approximation is the best one, and float32 takes it from the eigenvectors of the smaller Gram matrix, in float64.

    The range is found by randomized block Krylov iteration (Musco and Musco, arXiv 1504.05477), with LU between the
    products in place of QR; the projection of W onto it is truncated to rank r by its singular values (Halko,
    Martinsson and Tropp, SIAM Review 53, 2011, section 5), and the product that results is factored as
    `ldu_of_product` does. With given pivots the factors depend on W continuously as long as the r-th singular value of
    W is apart from the next one; where the two nearly tie, so do the best approximations.

    Examples
    --------
    >>> import numpy as np
    >>> ldu_lowrank(np.diag([1.0, 3.0, 2.0]), 2).reconstruct().round(12) + 0.0
    array([[0., 0., 0.],
           [0., 3., 0.],
           [0., 0., 2.]])
    """
    W, backend = check_matrix(W)
    rank = check_rank(rank, min(int(size) for size in W.shape[-2:]), optional=False)
    sketch = Sketch(niter, oversampling, seed)
    chosen = None if pivots is None else checked_pivots(pivots, W, int(W.shape[-1]), rank)

    if W.ndim == 2:
        return _factor(W, rank, sketch, chosen, backend)
    parts = [_factor(one, rank, sketch, None, backend) for one in matrices_of(W, backend)]
    names = ("left", "diagonal", "right", "permutation", "column_permutation")
    stacks = {name: stacked([getattr(part, name) for part in parts], W, backend) for name in names}
    return replace(parts[0], **stacks)


def _factor(W: Array, rank: int, sketch: Sketch, pivots: CheckedPivots | None, backend: Backend) -> LDU:
    return near_best(W, rank, sketch, backend).factor(rank, pivots)


@dataclass(frozen=True, eq=False)
class NearBest:
    """Hold nearly the best approximation of rank r of a matrix W (m, n), and those of lower ranks in it.

    Attributes
    ----------
    left, right : array, shapes (m, r) and (r, n)
        Their product, times 2 ** exponent, is the approximation; the leading terms are those of lower ranks. The factor
        on the shorter side of W is orthonormal, and the other one is W * 2 ** -exponent times it.
    exponent : int
        0 but for numbers near the ends of the range.
    values : numpy.ndarray, shape (l,), float64
        Lower bounds of the l >= r leading singular values of W * 2 ** -exponent; the values themselves where they are
        all of them.
    backend : Backend
    """

    left: Array
    right: Array
    exponent: int
    values: np.ndarray[Any, Any]
    backend: Backend

    def factor(self, rank: int, pivots: CheckedPivots | None = None) -> LDU:
        """Return the LDU of the leading terms."""
        factors = product_ldu(self.left[:, :rank], self.right[:rank, :], pivots, self.backend)
        if self.exponent:
            with np.errstate(over="ignore", under="ignore"):
                scaled = np.ldexp(np.asarray(self.backend.to_numpy(factors.diagonal)), self.exponent)
            diagonal = self.backend.from_numpy(scaled, self.left)
            check_representable(diagonal, self.backend, "the diagonal", "W times a small number")
            factors = replace(factors, diagonal=diagonal)
        return replace(factors, origin="lowrank")


def near_best(W: Array, rank: int, sketch: Sketch, backend: Backend, *, whole: bool = False) -> NearBest:
    """Return nearly the best approximation of W (m, n), a checked matrix.

    Parameters
    ----------
    W : array, shape (m, n)
    rank : int
        From 1 to min(m, n).
    sketch : Sketch
    backend : Backend
    whole : bool
        Whether all singular values are wanted, where the Gram matrix gives them: they cost O(k^3), k = min(m, n).
    """
    xp = backend.xp
    transpose = xp.matrix_transpose
    is_tall = W.shape[0] > W.shape[1]
    # The part of the range that is only drawn says more where there are fewer dimensions.
    short = transpose(W) if is_tall else W
    width = rank + sketch.oversampling

    def of_library(coefficients: np.ndarray[Any, Any]) -> Array:
        # Rounded here: the device may have no float64.
        return backend.from_numpy(np.ascontiguousarray(coefficients, dtype_name(W)), W)

    # Where the range would be the whole space, nothing has to be looked for.
    if (whole or rank >= sketch.spanning_rank(min(W.shape))) and gram_is_enough(W, backend):
        exponent = 0
        values, vectors = gram_directions(W, backend)
        orthonormal = of_library(vectors[:, :rank])
        other = transpose(orthonormal) @ short
    else:
        basis, image, exponent = find_range(short, width, sketch.niter, sketch.seed, backend)
        coefficients, values = leading_directions(basis, image, rank, backend)
        mixed = of_library(coefficients)
        orthonormal, other = basis @ mixed, transpose(mixed) @ image
    left, right = (transpose(other), transpose(orthonormal)) if is_tall else (orthonormal, other)
    return NearBest(left, right, exponent, values, backend)
