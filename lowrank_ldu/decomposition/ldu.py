"""Factor matrices by LDU with a pivoting strategy."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from functools import cached_property
from typing import TYPE_CHECKING, Literal, Self, get_args

import numpy as np

from lowrank_ldu.backend import Array, ArrayType, Backend, backend_of, full_precision
from lowrank_ldu.backend.pivots import SubnormalPivotError
from lowrank_ldu.decomposition.blocks import matrices_of, restore_rows, split_diagonal, stacked, take_rows
from lowrank_ldu.decomposition.complete import eliminate_complete
from lowrank_ldu.decomposition.elimination import ElementGrowthError, Elimination, on_writable
from lowrank_ldu.decomposition.factorization import Factorization
from lowrank_ldu.decomposition.partial import eliminate_partial
from lowrank_ldu.decomposition.randomized import eliminate_randomized
from lowrank_ldu.decomposition.rescaled import eliminate_rescaled
from lowrank_ldu.decomposition.rook import eliminate_rook
from lowrank_ldu.validation import (
    RANK_KEYWORDS,
    check_choice,
    check_count,
    check_matrix,
    check_rank,
    dtype_name,
    explain_keywords,
    is_finite,
)

if TYPE_CHECKING:
    from collections.abc import Callable

Pivoting = Literal["partial", "complete", "rook", "randomized"]
PIVOTING: tuple[Pivoting, ...] = get_args(Pivoting)
Origin = Literal["weight", "product", "lowrank"]
_ARRAYS = ("left", "diagonal", "right", "permutation", "column_permutation", "runner_up")


@dataclass(frozen=True, eq=False)
class LDU(Factorization[ArrayType]):
    """Hold the first r steps of a pivoted LDU factorization.

    `W[p][:, q] ~ lower @ diag(diagonal) @ upper`.

    Attributes
    ----------
    left : array, shape (..., m, r)
        P L: the lower factor with its rows in W's order.
    diagonal : array, shape (..., r)
        z. The pivots, except in `zero_pivots`.
    right : array, shape (..., r, n)
        U Q^T: the upper factor with its columns in W's order.
    permutation : integer array, shape (..., m)
        p, never a matrix. The first r are the pivot rows.
    column_permutation : integer array, shape (..., n), or None
        q; None for partial pivoting of a weight, which exchanges rows only.
    pivoting : str
        The strategy that chose the pivots.
    runner_up : array, shape (..., r), or None
        Complete and rook pivoting: the largest competitor of each pivot over the pivot, in magnitude. None where the
        competitors are the entries of `lower` below the diagonal.
    origin : {"weight", "product", "lowrank"}
        What was eliminated: W itself (`ldu`), a product of two factors (`ldu_of_product`), or a product that is
        nearly the best of its rank for W (`ldu_lowrank`). The pivots of the latter two are of the product, so that
        `ldu_at_pivots(W, ...)` gives other factors.
    """

    # Of the same library, but of integers, which the static type of W may not be.
    permutation: Array
    column_permutation: Array | None
    pivoting: Pivoting
    runner_up: ArrayType | None = None
    origin: Origin = "weight"

    @cached_property
    def lower(self) -> ArrayType:
        """L, shape (..., m, r): unit lower trapezoidal."""
        lower: ArrayType = take_rows(self.left, self.permutation, backend_of(self.left))
        return lower

    @cached_property
    def upper(self) -> ArrayType:
        """U, shape (..., r, n): upper trapezoidal.

        With ones on the diagonal except in `zero_pivots`.
        """
        if self.column_permutation is None:
            return self.right
        backend = backend_of(self.right)
        transpose = backend.xp.matrix_transpose
        upper: ArrayType = transpose(take_rows(transpose(self.right), self.column_permutation, backend))
        return upper

    @property
    def zero_pivots(self) -> Array:
        """Boolean, shape (..., r): steps without a usable pivot.

        The pivot was zero, too small beside its row for a finite unit upper factor, or not representable. The row was
        scaled by its own largest entry instead (or was zero), so that the factors are finite and exact all the same.
        """
        xp = backend_of(self.right).xp
        diagonal: Array = self.diagonal
        return (xp.linalg.diagonal(self.upper[..., : self.rank]) != 1) | (diagonal == 0)

    def truncate(self, rank: int) -> Self:
        """Return the first `rank` steps, 1 <= rank <= r, as views.

        They are what `ldu(W, rank)` gives for the same pivots. Of a product they are no near-best LDU of their rank.
        """
        shorter = super().truncate(rank)
        runner_up = None if self.runner_up is None else self.runner_up[..., : shorter.rank]
        return replace(shorter, runner_up=runner_up)


@explain_keywords(RANK_KEYWORDS | {"pivot": "it is pivoting here"})
@full_precision()
def ldu(W: ArrayType, rank: int | None = None, *, pivoting: Pivoting = "partial", seed: int = 0) -> LDU[ArrayType]:
    """Factor W = P L diag(z) U Q^T.

    With `rank`, only its first `rank` terms.

    Parameters
    ----------
    W : array, shape (..., m, n)
        A finite matrix or a stack of them, of NumPy, PyTorch (any device), JAX or CuPy; float32 or float64, or float16
        or bfloat16, which are computed and returned in float32. It is not changed, and gradients are not recorded.
    rank : int, optional
        r, from 1 to k = min(m, n). k if not given, and then `reconstruct()` equals W to rounding for every finite W,
        the zero matrix and rank-deficient ones included.
    pivoting : {"partial", "complete", "rook", "randomized"}
        How pivots are chosen. "partial" searches rows only (the paper's choice, and the fastest): its leading terms
        come from the first r columns of W, whichever those happen to be. "complete" takes the largest entry of what
        remains, "rook" one that is largest in its row and column, "randomized" sketches the columns of whole blocks.
    seed : int
        Draws the sketch of "randomized", at least 0; the others do not use it.

    Returns
    -------
    LDU

    Raises
    ------
    TypeError
        W is not an array of a supported library, or has another dtype.
    ValueError
        W has fewer than two dimensions, no entries, or entries that are not finite; rank is out of range; pivoting is
        not one of the four; seed is negative; elimination lets numbers grow beyond the largest one of the dtype, so
        that no factors hold them.

    Notes
    -----
    Cost in multiply-adds: "partial" and "randomized" O(r^2 (m + n)), the latter with O(m n) for the sketch; "rook"
    usually the same, in r steps; "complete" O(m n r). The factorization is equation (1) of arXiv 2410.13618, the
    leading terms equations (3) to (5).

    Pivots are chosen from values, so this cannot be traced: on JAX call it outside `jax.jit`.

    Examples
    --------
    >>> import numpy as np
    >>> factors = ldu(np.array([[1.0, 2.0], [4.0, 4.0]]))
    >>> factors.permutation, factors.diagonal
    (array([1, 0]), array([4., 1.]))
    >>> factors.lower
    array([[1.  , 0.  ],
           [0.25, 1.  ]])
    >>> factors.upper
    array([[1., 1.],
           [0., 1.]])
    >>> factors.reconstruct()
    array([[1., 2.],
           [4., 4.]])
    """
    check_pivoting(pivoting)
    check_count(seed, "seed")
    W, backend = check_matrix(W)
    rank = check_rank(rank, min(int(size) for size in W.shape[-2:]))

    return split_and_fold(
        W, lambda matrix, library: _eliminate(matrix, rank, pivoting, seed, library), pivoting, backend
    )


def check_pivoting(pivoting: str) -> None:
    """Raise ValueError unless `pivoting` is one of the strategies."""
    check_choice(pivoting, "pivoting", PIVOTING)


def split_and_fold(
    W: Array, eliminate: Callable[[Array, Backend], Elimination], pivoting: Pivoting, backend: Backend
) -> LDU:
    """Return the LDU of an elimination of W.

    In float64 and scaled where the ends of the range are in the way.

    Raises
    ------
    ValueError
        Numbers grow beyond the largest one of W's dtype, which the factors would have to hold.
    """
    # NumPy would warn of numbers that the next lines look for and correct.
    with np.errstate(over="ignore", invalid="ignore", under="ignore", divide="ignore"):
        try:
            elimination = eliminate(W, backend)
        except (ElementGrowthError, SubnormalPivotError):
            factors = None
        else:
            diagonal, upper = split_diagonal(elimination.rows, backend)
            factors = _fold(elimination, diagonal, upper, pivoting, backend)
        if factors is not None and _in_range(factors, backend):
            return factors
        if W.ndim > 2:
            parts = [split_and_fold(one, eliminate, pivoting, backend) for one in matrices_of(W, backend)]
            stacks = {name: stacked([getattr(part, name) for part in parts], W, backend) for name in _ARRAYS}
            return replace(parts[0], **stacks)
        rescaled = eliminate_rescaled(W, eliminate, backend)
        if rescaled is not None:
            return _fold(*rescaled, pivoting, backend)
    raise ValueError(
        f"W grows beyond {float(backend.xp.finfo(W.dtype).max):.3g}, the largest number of {dtype_name(W)}, when it is "
        f"eliminated with {pivoting} pivoting; accepted: pivots that let it grow less, as those of 'complete' or 'rook'"
    )


def _in_range(factors: LDU, backend: Backend) -> bool:
    """Return whether factors are finite and pivots ordinary.

    This holds if all factors are finite, and the largest pivot of each matrix is ordinary.

    LAPACK and XLA multiply by reciprocals of pivots. Those of hardly normal numbers overflow, and those of the largest
    numbers are not normal.
    """
    if not all(is_finite(array, backend) for array in (factors.left, factors.diagonal, factors.right)):
        return False
    xp = backend.xp
    finfo = xp.finfo(factors.diagonal.dtype)
    largest = xp.max(xp.abs(factors.diagonal), axis=-1)
    least, most = (float(largest),) * 2 if largest.ndim == 0 else (float(xp.min(largest)), float(xp.max(largest)))
    return float(finfo.smallest_normal) / float(finfo.eps) <= least and most <= float(finfo.max) / 8


def _eliminate(W: Array, rank: int, pivoting: Pivoting, seed: int, backend: Backend) -> Elimination:
    if pivoting == "partial":
        return eliminate_partial(W, rank, backend)
    if W.ndim > 2:
        return _eliminate_stack(W, rank, pivoting, seed, backend)
    if pivoting == "randomized":
        return eliminate_randomized(W, rank, backend, seed)
    strategy = eliminate_complete if pivoting == "complete" else eliminate_rook
    return on_writable(strategy, W, rank, backend)


def _eliminate_stack(W: Array, rank: int, pivoting: Pivoting, seed: int, backend: Backend) -> Elimination:
    """Take the matrices of a stack (..., m, n) one by one."""
    parts = [_eliminate(one, rank, pivoting, seed, backend) for one in matrices_of(W, backend)]
    names = (field.name for field in fields(Elimination))
    return Elimination(**{name: stacked([getattr(part, name) for part in parts], W, backend) for name in names})


def _fold(elimination: Elimination, diagonal: Array, upper: Array, pivoting: Pivoting, backend: Backend) -> LDU:
    """Fold the column permutation into the factors."""
    right = upper
    if elimination.column_permutation is not None:
        transpose = backend.xp.matrix_transpose
        right = transpose(restore_rows(transpose(upper), elimination.column_permutation, backend))
    return LDU(
        left=elimination.left,
        diagonal=diagonal,
        right=right,
        permutation=elimination.permutation,
        column_permutation=elimination.column_permutation,
        pivoting=pivoting,
        runner_up=elimination.runner_up,
    )
