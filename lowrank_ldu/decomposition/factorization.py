"""Hold a factorization: left @ diag(diagonal) @ right."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Generic, Self

import numpy as np

from lowrank_ldu.backend import Array, ArrayType, backend_of, full_precision
from lowrank_ldu.decomposition.gram import refit_diagonal, wide
from lowrank_ldu.decomposition.powers import exponent_of, largest_exponent, times_power
from lowrank_ldu.validation import check_finite, check_like, check_rank, check_representable, dtype_name, is_finite


def scaled_product(left: Array, diagonal: Array, right: Array) -> Array:
    """Return left @ diag(diagonal) @ right (..., m, n).

    The shapes are left (..., m, r), diagonal (..., r) and right (..., r, n).

    Entries that the sum over its terms overflows on the way to are formed with the diagonal brought down by a power of
    two (exact) before it, and back up after it, so that none is lost that is representable.
    """
    backend = backend_of(left, "left")
    xp = backend.xp
    with np.errstate(over="ignore", invalid="ignore"):  # the result is checked below
        product = (left * diagonal[..., None, :]) @ right
        if not backend.is_traced(product) and is_finite(product, backend):
            return product
        tops = [
            exponent_of(xp.max(xp.abs(part), axis=axes), backend)
            for part, axes in ((left, (-2, -1)), (diagonal, -1), (right, (-2, -1)))
        ]
        needed = tops[0] + tops[1] + xp.maximum(tops[2], xp.zeros_like(tops[2])) + math.ceil(math.log2(right.shape[-2]))
        excess = xp.maximum(needed - largest_exponent(xp, left.dtype) + 1, xp.zeros_like(needed))
        scaled = (left * times_power(diagonal, -excess[..., None], backend)[..., None, :]) @ right
        return xp.where(xp.isfinite(product), product, times_power(scaled, excess[..., None, None], backend))


@dataclass(frozen=True, eq=False)
class Factorization(Generic[ArrayType]):
    """A weight as a sum of rank-one terms.

    `W ~ left @ diag(diagonal) @ right`.

    Attributes
    ----------
    left : array, shape (..., m, r)
    diagonal : array, shape (..., r)
    right : array, shape (..., r, n)
        All three of one floating dtype, on one device of one array library.
    """

    left: ArrayType
    diagonal: ArrayType
    right: ArrayType

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape (..., m, n) of the matrix that is factored."""
        return (*self.left.shape[:-1], int(self.right.shape[-1]))

    @property
    def rank(self) -> int:
        """Number of rank-one terms r."""
        return int(self.diagonal.shape[-1])

    @full_precision()
    def reconstruct(self) -> ArrayType:
        """Return left @ diag(diagonal) @ right, shape (..., m, n).

        Raises
        ------
        ValueError
            An entry of it is beyond the largest number of the factors' dtype.

        Examples
        --------
        >>> import numpy as np
        >>> one = np.ones(1)
        >>> Factorization(np.ones((2, 1)), one, np.ones((1, 3))).reconstruct()
        array([[1., 1., 1.],
               [1., 1., 1.]])
        """
        product: ArrayType = scaled_product(self.left, self.diagonal, self.right)
        return check_representable(
            product, backend_of(product), "left @ diag(diagonal) @ right", "factors whose product their dtype holds"
        )

    @full_precision()
    def residual(self, W: Array) -> ArrayType:
        """Return W - reconstruct(), shape (..., m, n), in the factors' dtype.

        Raises
        ------
        ValueError
            W has another shape than the matrix that was factored, or is not finite; as `reconstruct`; an entry of the
            difference is beyond the largest number of the factors' dtype.
        """
        with np.errstate(over="ignore"):
            difference: ArrayType = self._checked(W) - self.reconstruct()
        return check_representable(
            difference,
            backend_of(difference),
            "the residual",
            "factors that are nearer to W, or W times a small number",
        )

    def truncate(self, rank: int) -> Self:
        """Return the first `rank` terms, 1 <= rank <= r, as views."""
        rank = check_rank(rank, self.rank)
        return replace(
            self, left=self.left[..., :rank], diagonal=self.diagonal[..., :rank], right=self.right[..., :rank, :]
        )

    @full_precision()
    def refit(self, W: Array) -> Self:
        r"""Return the same factors with their best diagonal.

        Best in the Frobenius norm.

        z minimizes \|W - left diag(z) right\|_F, the solution of `((L^T L) * (U U^T)) z = diag(L^T W U^T)` with
        L = left, U = right. It is solved for the correction to the present diagonal, in float64 where the device has
        it, so that a factorization which is exact already stays so. Terms that depend on each other share the
        correction of least norm.

        Raises
        ------
        ValueError
            W has another shape than the matrix that was factored, or is not finite in the factors' dtype; the best
            diagonal is beyond the largest number of it.

        Examples
        --------
        >>> import numpy as np
        >>> from lowrank_ldu import ldu
        >>> W = np.array([[2.0, 1.0], [1.0, 3.0]])
        >>> first = ldu(W, 1)
        >>> error = np.linalg.norm(first.residual(W))
        >>> bool(np.linalg.norm(first.refit(W).residual(W)) < error)
        True
        """
        return replace(self, diagonal=refit_diagonal(self._checked(W), self.left, self.diagonal, self.right))

    @full_precision()
    def fit(self, target: Array) -> Factorization[ArrayType]:
        r"""Fit the diagonal to another matrix, such as an update of W.

        The result is the nearest matrix of the form left diag(d) right.

        d minimizes \|target - left diag(d) right\|_F: an orthogonal projection onto the r-dimensional space that the
        diagonal spans. Solved as `refit` solves it, but from zero, since the present diagonal says nothing of another
        matrix.

        Parameters
        ----------
        target : array, shape (..., m, n)
            Of the shape that was factored and of the factors' library.

        Returns
        -------
        Factorization
            In float64 where the device has it.

        Raises
        ------
        TypeError, ValueError
            As `refit`.

        Examples
        --------
        >>> import numpy as np
        >>> from lowrank_ldu import ldu
        >>> factors = ldu(np.array([[2.0, 1.0], [1.0, 3.0]]))
        >>> update = factors.left @ np.diag([0.5, -2.0]) @ factors.right
        >>> factors.fit(update).diagonal.round(12)
        array([ 0.5, -2. ])
        """
        backend = backend_of(self.left, "left")
        left, diagonal, right = (wide(part, backend) for part in (self.left, self.diagonal, self.right))
        nothing = Factorization(left, backend.xp.zeros_like(diagonal), right)
        return nothing.refit(target)

    def _checked(self, W: Array) -> Array:
        W, backend = check_like(W, self.left)
        if tuple(W.shape) != tuple(self.shape):
            raise ValueError(
                f"W has shape {tuple(W.shape)}; accepted: {tuple(self.shape)}, the shape that was factored"
            )
        with np.errstate(over="ignore"):
            W = backend.xp.astype(W, self.left.dtype)
        check_finite(W, backend, f"W in the factors' {dtype_name(W)}")
        return W
