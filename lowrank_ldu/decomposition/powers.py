"""Scale arrays exactly, by powers of two."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from lowrank_ldu.backend import backend_of

if TYPE_CHECKING:
    from lowrank_ldu.backend import Array, Backend

# Share of a dtype's exponents that is moderate. In float64, numbers up to 2 ** 128 can be multiplied a few times.
_MODERATE_SHARE = 8


def exponent_of(magnitude: Array, backend: Backend) -> Array:
    """Return the exponent e of a magnitude, 0 for 0.

    A whole number in the array's dtype with magnitude < 2 ** e <= 4 magnitude.

    Logarithms round, so that 4 stands where 2 would do.
    """
    xp = backend.xp
    positive = magnitude > 0
    logarithm = xp.log2(xp.where(positive, magnitude, xp.ones_like(magnitude)))
    return xp.where(positive, xp.floor(logarithm) + 1, xp.zeros_like(magnitude))


def largest_exponent(xp: Any, dtype: Any) -> int:
    """Return the exponent beyond a dtype's largest number.

    It is E with 2 ** E just beyond that number.
    """
    return math.frexp(float(xp.finfo(dtype).max))[1]


def moderated(exponent: Array, backend: Backend) -> Array:
    """Replace the exponents of moderate numbers by 0.

    Moderate numbers can be multiplied a few times without leaving the range.
    """
    xp = backend.xp
    limit = largest_exponent(xp, exponent.dtype) // _MODERATE_SHARE
    return xp.where(xp.abs(exponent) <= limit, xp.zeros_like(exponent), exponent)


def times_power(array: Array, exponent: Array, backend: Backend) -> Array:
    """Return array * 2 ** exponent; the two are broadcast.

    It is rounded only where the result is subnormal.

    In four steps of about equal size, since 2 ** exponent itself may be out of range. All go the same way, so nothing
    overflows or vanishes on it that does not in the end; four reach from one end of the range across it and back.
    """
    xp = backend.xp
    if not backend.is_traced(exponent) and not bool(xp.any(exponent != 0)):
        return array
    rest = exponent
    for parts in (4, 3, 2, 1):
        step = xp.round(rest / parts)
        array = array * backend.power_of_two(step)
        rest = rest - step
    return array


def scaled_by(array: Array, exponent: int) -> Any:
    """Return array * 2 ** exponent for a single exponent.

    It is rounded only where the result is subnormal.
    """
    half = exponent // 2
    # Two factors: one of them may not be representable.
    return array * 2.0**half * 2.0 ** (exponent - half) if exponent else array


def balanced(left: Array, right: Array, backend: Backend) -> tuple[Array, Array, Array]:
    """Bring each term to moderate size.

    Return left (..., m, r), right (..., r, n), and the exponents taken from each term.

    left diag(z) right is the product of what is returned with z * 2 ** exponents (..., r). Where all are of moderate
    size already the factors are returned as they are, and zeros.
    """
    xp = backend.xp
    of_left, of_right = (
        moderated(exponent_of(xp.max(xp.abs(factor), axis=axis), backend), backend)
        for factor, axis in ((left, -2), (right, -1))
    )
    left = times_power(left, -of_left[..., None, :], backend)
    right = times_power(right, -of_right[..., :, None], backend)
    return left, right, of_left + of_right


def exponents_of_extremes(W: Array, backend: Backend) -> np.ndarray[Any, Any]:
    """Return the exponent of each matrix with extreme numbers.

    That of its largest entry where squares leave the range, 0 elsewhere.
    """
    if not backend.in_place:  # XLA takes subnormal numbers for zeros
        W = np.asarray(backend.to_numpy(W))
        backend = backend_of(W)
    # Not abs(W), which would be written to memory.
    highest, lowest = (np.asarray(backend.to_numpy(end(W, axis=(-2, -1)))) for end in (backend.xp.max, backend.xp.min))
    largest = np.maximum(highest, -lowest)
    exponents: np.ndarray[Any, Any] = np.frexp(largest)[1]
    limit = largest_exponent(backend.xp, W.dtype) // 2
    return np.where(np.abs(exponents) > limit, exponents, 0)
