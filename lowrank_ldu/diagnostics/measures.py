"""Compute single figures of a matrix, as Python floats."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
import scipy.linalg

from lowrank_ldu.decomposition.elimination import in_host_memory
from lowrank_ldu.validation import dtype_name

if TYPE_CHECKING:
    import numpy.typing as npt

    from lowrank_ldu.backend import Array, Backend

# Largest ratio of a Gram matrix's eigenvalues at which rounding changes the condition number by less than 1e-8.
_SAFE_RATIO = 1e7
# From this size on Lanczos iterations take a tenth of the time of all eigenvalues.
_LANCZOS_FROM = 128
# Tolerance of the residual. The error of the eigenvalue is the square of it, and far smaller.
_LANCZOS_TOLERANCE = 1e-8


def quiet() -> np.errstate:
    """Silence NumPy's warnings about overflow and the like.

    They would speak of what is looked for here, and then taken another way.
    """
    return np.errstate(over="ignore", invalid="ignore", under="ignore", divide="ignore")


def frobenius_norm(matrix: Array, backend: Backend) -> float:
    """Return the Frobenius norm.

    Entries are scaled first, so that their squares can neither overflow nor vanish.
    """
    xp = backend.xp
    largest = float(xp.max(xp.abs(matrix)))
    if largest == 0.0 or not math.isfinite(largest):
        return largest
    scaled = matrix / largest
    return largest * math.sqrt(float(xp.sum(scaled * scaled)))


def spectral_norm(matrix: Array, backend: Backend) -> float:
    """Return the largest singular value of matrix (m, n).

    From the largest eigenvalue of the smaller Gram matrix, at a fraction of the price of all singular values. For the
    largest one (not for small ones) that is as accurate.
    """
    xp = backend.xp
    largest = float(xp.max(xp.abs(matrix)))
    if largest == 0.0 or not math.isfinite(largest):
        return largest
    scaled = matrix / largest
    transposed = xp.matrix_transpose(scaled)
    gram = scaled @ transposed if matrix.shape[0] <= matrix.shape[1] else transposed @ scaled
    return largest * math.sqrt(max(largest_eigenvalue(gram, backend), 0.0))


def largest_eigenvalue(matrix: Array, backend: Backend) -> float:
    """Return the largest eigenvalue of a semidefinite matrix (k, k)."""
    size = int(matrix.shape[0])
    if size < _LANCZOS_FROM:
        return float(backend.xp.linalg.eigvalsh(matrix)[-1])
    # Its import takes as long as that of the rest of this package.
    from scipy.sparse.linalg import ArpackError, LinearOperator, eigsh  # noqa: PLC0415

    dtype = np.dtype(dtype_name(matrix))
    if in_host_memory(matrix) or not backend.in_place:
        operator = backend.to_numpy(matrix)
    else:
        # Vectors go to the device and back: far fewer numbers than the matrix has.
        operator = LinearOperator(
            matrix.shape,
            matvec=lambda vector: backend.to_numpy(matrix @ backend.from_numpy(vector.reshape(-1), matrix)),
            dtype=dtype,
        )
    # Without a start vector ARPACK draws one, other in every process.
    start = np.random.default_rng(0).standard_normal(size).astype(dtype)
    try:
        (value,) = eigsh(operator, 1, which="LA", v0=start, tol=_LANCZOS_TOLERANCE, return_eigenvectors=False)
    except ArpackError:
        return float(backend.xp.linalg.eigvalsh(matrix)[-1])
    return float(value)


def independent_cholesky(
    gram: npt.NDArray[np.float64], least: float
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Return the Cholesky factor of unit columns, and their norms.

    From their Gram matrix (r, r), of as many leading columns as are independent of each other: each stands out of the
    span of those before by at least `least`, squared, of its length.
    """
    size = np.sqrt(np.diagonal(gram))
    triangle, failed_at = scipy.linalg.lapack.dpotrf(gram / size[:, None] / size[None, :], lower=1, clean=1)
    pivots = np.diagonal(triangle)[: failed_at - 1 if failed_at else None]
    dependent = np.flatnonzero(~(pivots**2 > least))  # NaN as well
    count = int(dependent[0]) if dependent.size else len(pivots)
    return triangle[:count, :count], size


def condition_number(values: Array, size: int, backend: Backend) -> float:
    """Return the largest over the smallest of `values`.

    inf where the smallest is rounding (under size * eps * largest).
    """
    xp = backend.xp
    largest, smallest = float(xp.max(values)), float(xp.min(values))
    if smallest <= size * float(xp.finfo(values.dtype).eps) * largest:
        return math.inf
    return largest / smallest


def condition_of_factor(gram: Array, factor: Array, backend: Backend) -> float:
    """Return the condition number of a factor.

    It has r columns or rows, and its Gram matrix (r, r) is known.

    From the eigenvalues of that, unless they are too far apart: their ratio is the square of the condition number, and
    rounding grows with it.
    """
    xp = backend.xp
    if backend.has_float64(factor):
        values = xp.linalg.eigvalsh(gram)
        smallest, largest = float(values[0]), float(values[-1])
        if smallest * _SAFE_RATIO > largest:  # not if one is NaN
            return math.sqrt(largest / smallest)
    return condition_number(xp.linalg.svdvals(factor), max(factor.shape), backend)


def orthogonality_defect(gram: Array, backend: Backend) -> float:
    r"""Return the defect of orthogonality of unit columns C.

    \|C^T C - I\|_F / sqrt(r), from the Gram matrix (r, r) of the unscaled columns.

    A column that is zero has no direction; it counts as one that is orthogonal to none, with C^T C = 0 on the diagonal.
    """
    xp = backend.xp
    length = xp.sqrt(xp.linalg.diagonal(gram))
    length = xp.where(length > 0, length, xp.ones_like(length))
    cosines = gram / length[:, None] / length[None, :]
    rank = int(gram.shape[0])
    identity = xp.eye(rank, dtype=gram.dtype, device=xp.empty_like(gram).device)
    return frobenius_norm(cosines - identity, backend) / math.sqrt(rank)
