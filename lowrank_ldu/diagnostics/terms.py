"""Hold the terms of a factorization and their Gram matrices."""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING

from lowrank_ldu.decomposition.gram import gram_matrix, wide
from lowrank_ldu.decomposition.powers import (
    balanced,
    exponent_of,
    largest_exponent,
    moderated,
    scaled_by,
    times_power,
)
from lowrank_ldu.validation import dtype_name

if TYPE_CHECKING:
    from lowrank_ldu.backend import Array, Backend
    from lowrank_ldu.decomposition import Factorization


class Terms:
    """Hold the terms of a factorization.

    In float64 where the device has it; the first r of everything are those of rank r.

    Parameters
    ----------
    factors : Factorization
    backend : Backend
        Of its arrays.
    exponent : int
        Of the unit 2 ** exponent that the product is measured in, the target's.

    Attributes
    ----------
    left, z, right : array, shapes (m, r), (r,) and (r, n)
        The factors; z in that unit.
    unit_left, unit_z, unit_right : array, shapes as above
        The same terms, their factors brought to moderate size one by one where squares would leave the range.
    extreme : bool
        Whether that was needed.
    exact : bool
        Whether they are in float64, so that sums of squares may be subtracted from each other.
    single : bool
        Whether they are numbers of float32.

    Raises
    ------
    ValueError
        A term is so much larger than the unit that sums over the terms could overflow.
    """

    def __init__(self, factors: Factorization, backend: Backend, exponent: int) -> None:
        xp = backend.xp
        self.left, diagonal, self.right = (
            wide(part, backend) for part in (factors.left, factors.diagonal, factors.right)
        )
        self.unit_left, self.unit_right, taken = balanced(self.left, self.right, backend)
        self.z = scaled_by(diagonal, -exponent)
        self.unit_z = times_power(diagonal, taken - exponent, backend)
        self.extreme = bool(xp.any(taken != 0))
        self.exact = backend.has_float64(factors.left)
        self.single = dtype_name(factors.left) == "float32"
        self._backend = backend
        room = 2.0 ** (largest_exponent(xp, diagonal.dtype) * 7 // 8)
        if not float(xp.max(xp.abs(self.unit_z))) < room:
            raise ValueError(
                f"factors hold a term that is more than {room:.3g} times as large as W, so that nothing of it can be "
                "measured; accepted: factors of pivots that let elements grow less"
            )

    @cached_property
    def even_left(self) -> Array:
        """L, scaled as a whole to moderate size."""
        return self._even(self.left)

    @cached_property
    def even_right(self) -> Array:
        """U, scaled as a whole to moderate size."""
        return self._even(self.right)

    def _even(self, factor: Array) -> Array:
        largest = self._backend.xp.max(self._backend.xp.abs(factor))
        return times_power(factor, -moderated(exponent_of(largest, self._backend), self._backend), self._backend)

    @cached_property
    def left_gram(self) -> Array:
        """L^T L of `even_left`, shape (r, r)."""
        return self.even_left.T @ self.even_left

    @cached_property
    def right_gram(self) -> Array:
        """U U^T of `even_right`, shape (r, r)."""
        return self.even_right @ self.even_right.T

    @cached_property
    def unit_left_gram(self) -> Array:
        """L^T L of `unit_left`, shape (r, r)."""
        return self.unit_left.T @ self.unit_left if self.extreme else self.left_gram

    @cached_property
    def unit_right_gram(self) -> Array:
        """U U^T of `unit_right`, shape (r, r)."""
        return self.unit_right @ self.unit_right.T if self.extreme else self.right_gram

    @cached_property
    def unit_gram(self) -> Array:
        """G of the terms of `unit_left` and `unit_right`, shape (r, r)."""
        return self.unit_left_gram * self.unit_right_gram

    @cached_property
    def gram(self) -> Array:
        """G = (L^T L) * (U U^T), shape (r, r).

        ValueError if it is beyond the largest number.
        """
        return gram_matrix(self.left, self.right) if self.extreme else self.unit_gram
