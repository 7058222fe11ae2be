"""Single figures of a matrix, as Python floats."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from lowrank_ldu.decomposition.factorization import scaled_product

if TYPE_CHECKING:
    from lowrank_ldu.backend import Array, Backend

_STORAGE = {"float16": 65504.0, "bfloat16": 3.3895313892515355e38}


def frobenius_norm(matrix: Array, backend: Backend) -> float:
    """Return the Frobenius norm, of entries scaled first so that their squares can neither overflow nor vanish."""
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
    return largest * math.sqrt(max(float(xp.linalg.eigvalsh(gram)[-1]), 0.0))


def condition_number(values: Array, size: int, backend: Backend) -> float:
    """Return largest over smallest of `values`, or inf where the smallest is rounding (under size * eps * largest)."""
    xp = backend.xp
    largest, smallest = float(xp.max(values)), float(xp.min(values))
    if smallest <= size * float(xp.finfo(values.dtype).eps) * largest:
        return math.inf
    return largest / smallest


def orthogonality_defect(gram: Array, backend: Backend) -> float:
    r"""Return \|C^T C - I\|_F / sqrt(r) of unit columns C, from the Gram matrix (r, r) of the unscaled ones.

    A column that is zero has no direction; it counts as one that is orthogonal to none, with C^T C = 0 on the diagonal.
    """
    xp = backend.xp
    length = xp.sqrt(xp.linalg.diagonal(gram))
    length = xp.where(length > 0, length, xp.ones_like(length))
    cosines = gram / length[:, None] / length[None, :]
    rank = int(gram.shape[0])
    identity = xp.eye(rank, dtype=gram.dtype, device=xp.empty_like(gram).device)
    return frobenius_norm(cosines - identity, backend) / math.sqrt(rank)


def storage_error(left: Array, diagonal: Array, right: Array, dtype: str, backend: Backend) -> float:
    """Return the Frobenius norm of what rounding left and right to `dtype` changes, or inf if an entry overflows it.

    The arrays are in float64 (float32 where the device has none).
    """
    xp = backend.xp
    if max(float(xp.max(xp.abs(left))), float(xp.max(xp.abs(right)))) > _STORAGE[dtype]:
        return math.inf
    rounded_left, rounded_right = (_round_to(array, dtype, backend) for array in (left, right))
    # Two products of small differences instead of the difference of two products, which would cancel.
    change = scaled_product(rounded_left - left, diagonal, right) + scaled_product(
        rounded_left, diagonal, rounded_right - right
    )
    return frobenius_norm(change, backend)


def _round_to(array: Array, dtype: str, backend: Backend) -> Array:
    """Round to the nearest number of `dtype`, ties to even, in the array's own dtype.

    NumPy has no bfloat16, so both are rounded by arithmetic: to a multiple of the spacing at each entry's magnitude.
    """
    xp = backend.xp
    digits, smallest_exponent = {"float16": (11, -14), "bfloat16": (8, -126)}[dtype]
    magnitude = xp.where(array == 0, xp.ones_like(array), xp.abs(array))
    exponent = xp.maximum(xp.floor(xp.log2(magnitude)), xp.full_like(array, smallest_exponent))
    spacing = 2.0 ** (exponent - (digits - 1))
    return xp.round(array / spacing) * spacing
