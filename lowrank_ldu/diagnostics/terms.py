"""The rank-one terms of a factorisation, and the Gram matrices that figures at every rank are made of."""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING

from lowrank_ldu.decomposition.gram import wide
from lowrank_ldu.validation import dtype_name

if TYPE_CHECKING:
    from lowrank_ldu.backend import Array, Backend
    from lowrank_ldu.decomposition import Factorization


class Terms:
    """All terms of a factorisation, in float64 where the device has it; the first r of everything are those of rank r.

    Parameters
    ----------
    factors : Factorization
    backend : Backend
        Of its arrays.

    Attributes
    ----------
    left, z, right : array, shapes (m, r), (r,) and (r, n)
    exact : bool
        Whether they are in float64, so that sums of squares may be subtracted from each other.
    single : bool
        Whether they are numbers of float32.
    """

    def __init__(self, factors: Factorization, backend: Backend) -> None:
        self.left, self.z, self.right = (
            wide(part, backend) for part in (factors.left, factors.diagonal, factors.right)
        )
        self.exact = backend.has_float64(factors.left)
        self.single = dtype_name(factors.left) == "float32"

    @cached_property
    def left_gram(self) -> Array:
        """L^T L, shape (r, r)."""
        return self.left.T @ self.left

    @cached_property
    def right_gram(self) -> Array:
        """U U^T, shape (r, r)."""
        return self.right @ self.right.T

    @cached_property
    def gram(self) -> Array:
        """G = (L^T L) * (U U^T), shape (r, r)."""
        return self.left_gram * self.right_gram
