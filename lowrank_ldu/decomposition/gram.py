"""Compute the Gram matrix of terms, and least squares in it."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from lowrank_ldu.backend import Array, ArrayType, Backend, backend_of, full_precision
from lowrank_ldu.decomposition.powers import balanced, exponent_of, largest_exponent, moderated, times_power
from lowrank_ldu.validation import check_representable

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

# One correction reaches the rounding of the working precision for well-conditioned terms; the second one mends what
# the solve with an ill-conditioned Gram matrix (condition number up to 1/eps) left over.
_CORRECTIONS = 2
_BITS_OF_CORRECTION = 40
# Entries of W that are in float64 at a time: 32 MB.
_BLOCK = 2**22


def wide(array: Array, backend: Backend) -> Array:
    """Return an array in float64, or float32 without one."""
    xp = backend.xp
    return xp.astype(array, xp.float64 if backend.has_float64(array) else xp.float32)


def blocks_of_rows(shape: Sequence[int], entries: int = _BLOCK) -> list[slice]:
    """Return slices of the rows of an array (..., m, n).

    Each has at most `entries`, or is one row.
    """
    m = int(shape[-2])
    height = max(1, entries * m // math.prod(shape))
    return [slice(start, start + height) for start in range(0, m, height)]


@full_precision()
def gram_matrix(left: ArrayType, right: ArrayType) -> ArrayType:
    """Return the Gram matrix G of the terms left[:, i] right[i, :].

    In float64 where the device has it.

    `G = (L^T L) * (U U^T)`, the elementwise product, since the inner product of two rank-one matrices factors. It is
    the metric of the diagonal: a change dz of it changes the weight by sqrt(dz^T G dz) in the Frobenius norm.

    Parameters
    ----------
    left : array, shape (..., m, r)
    right : array, shape (..., r, n)

    Returns
    -------
    array, shape (..., r, r), symmetric positive semidefinite

    Raises
    ------
    ValueError
        An entry of it is beyond the largest number.

    Examples
    --------
    >>> import numpy as np
    >>> gram_matrix(np.array([[1.0, 0.0], [1.0, 1.0]]), np.array([[1.0, 2.0], [0.0, 1.0]]))
    array([[10.,  2.],
           [ 2.,  1.]])
    """
    backend = backend_of(left, "left")
    transpose = backend.xp.matrix_transpose
    left, right = wide(left, backend), wide(right, backend)
    with np.errstate(over="ignore", invalid="ignore"):
        gram: ArrayType = (transpose(left) @ left) * (right @ transpose(right))
    return check_representable(gram, backend, "the Gram matrix of the terms", "terms that are scaled down")


def refit_diagonal(W: Array, left: Array, diagonal: Array, right: Array) -> Array:
    """Return the diagonal (..., r) that is best for W.

    It minimizes the Frobenius norm of W - left diag(z) right.

    Shapes and meaning as in `Factorization.refit`. Terms are scaled to unit norm for the solve: the columns of
    triangular factors differ in size by orders of magnitude, and the condition number need not pay for that. Before
    that, terms and W are scaled by powers of two, which is exact, so that no square overflows or vanishes.

    Raises
    ------
    ValueError
        The best diagonal is beyond the largest number of the diagonal's dtype.
    """
    backend = backend_of(left, "left")
    xp = backend.xp
    wide_left, wide_right, taken = balanced(wide(left, backend), wide(right, backend), backend)
    z = wide(diagonal, backend)
    unit, grown = _unit(W, z, taken, backend)
    z = times_power(z, taken - unit[..., None], backend)
    gram = gram_matrix(wide_left, wide_right)
    size = xp.sqrt(xp.linalg.diagonal(gram))
    size = xp.where(size > 0, size, xp.ones_like(size))
    unit_gram = gram / size[..., :, None] / size[..., None, :]
    solve = semidefinite_solver(unit_gram)
    # Terms that are much larger than W leave rounding errors of their own size; more corrections remove them.
    more = 0 if backend.is_traced(grown) else int(max(0.0, float(xp.max(grown))) // _BITS_OF_CORRECTION)
    with np.errstate(over="ignore", invalid="ignore"):
        for _ in range(_CORRECTIONS + more):
            slope = xp.zeros_like(z)
            for rows in blocks_of_rows(W.shape):
                part = wide_left[..., rows, :]
                block = times_power(wide(W[..., rows, :], backend), -unit[..., None, None], backend)
                error = block - (part * z[..., None, :]) @ wide_right
                slope = slope + xp.sum((xp.matrix_transpose(part) @ error) * wide_right, axis=-1)
            z = z + solve(slope / size) / size
        return _stored(z, unit[..., None] - taken, diagonal.dtype, backend)


def _unit(W: Array, z: Array, taken: Array, backend: Backend) -> tuple[Array, Array]:
    """Return the exponents (...) of the unit and of the growth.

    The unit that W and its terms are measured in, and by how much terms are larger than W.

    The first is 0 for moderate numbers, or else the size of W, unless the terms would overflow in that.
    """
    xp = backend.xp
    room = largest_exponent(xp, z.dtype) // 2
    of_matrix = exponent_of(wide(xp.max(xp.abs(W), axis=(-2, -1)), backend), backend)
    of_terms = exponent_of(xp.abs(z), backend) + taken
    largest_term = xp.max(xp.where(z == 0, xp.full_like(z, -math.inf), of_terms), axis=-1)
    return moderated(xp.maximum(of_matrix, largest_term - room), backend), largest_term - of_matrix


def _stored(z: Array, exponent: Array, dtype: Any, backend: Backend) -> Array:
    """Return z * 2 ** exponent in a dtype.

    Numbers beyond its largest one by no more than rounding become that.
    """
    xp = backend.xp
    finfo = xp.finfo(dtype)
    largest = float(finfo.max)
    half = times_power(z, exponent - 1, backend)
    # NaN as well.
    if not backend.is_traced(z) and not float(xp.max(xp.abs(half))) <= largest / 2 * (1 + 16 * float(finfo.eps)):
        raise ValueError(
            f"the diagonal that is best for W is beyond {largest:.3g}, the largest number of their dtype; "
            "accepted: factors of terms whose size is nearer to W's"
        )
    return xp.astype(xp.clip(times_power(z, exponent, backend), -largest, largest), dtype)


def semidefinite_solver(matrix: Array) -> Callable[[Array], Array]:
    """Return a solver for a semidefinite matrix (..., r, r).

    For rhs (..., r) it returns the x (..., r) of least norm with matrix @ x = rhs.

    By eigenvalues. Those under r * eps times the largest are rounding, not information, and count as zero.
    """
    xp = backend_of(matrix, "matrix").xp
    values, vectors = xp.linalg.eigh(matrix)
    cutoff = matrix.shape[-1] * float(xp.finfo(values.dtype).eps) * values[..., -1:]
    kept = values > cutoff
    inverse = xp.where(kept, 1 / xp.where(kept, values, xp.ones_like(values)), xp.zeros_like(values))

    def solve(rhs: Array) -> Array:
        coefficients = inverse[..., None] * (xp.matrix_transpose(vectors) @ rhs[..., None])
        return (vectors @ coefficients)[..., 0]

    return solve
