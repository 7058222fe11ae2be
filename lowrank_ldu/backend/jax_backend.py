"""Offer the primitives on JAX."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np

from lowrank_ldu.backend.pivots import check_pivots

if TYPE_CHECKING:
    from lowrank_ldu.backend.base import Array


class JaxBackend:
    """Implement `Backend` on JAX, whose arrays are immutable."""

    name = "jax"
    xp: Any = jnp
    in_place = False

    def lu(self, matrix: Array) -> tuple[Array, Array]:
        packed, _, permutation = jax.lax.linalg.lu(matrix)
        check_pivots(packed, self)
        return packed, permutation

    def solve_triangular(self, triangle: Array, rhs: Array, *, lower: bool, unit_diagonal: bool) -> Array:
        return jax.lax.linalg.triangular_solve(triangle, rhs, left_side=True, lower=lower, unit_diagonal=unit_diagonal)

    def subtract_outer(self, matrix: Array, column: Array, row: Array) -> None:
        del matrix, column, row
        raise TypeError("JAX arrays cannot be written to; loops over single pivots run on the host")

    def from_numpy(self, array: np.ndarray[Any, Any], like: Array) -> Array:
        return jax.device_put(array, next(iter(like.devices())))

    def to_numpy(self, array: Array) -> np.ndarray[Any, Any]:
        return np.asarray(array)

    def detach(self, array: Array) -> Array:
        return jax.lax.stop_gradient(array)

    def has_float64(self, like: Array) -> bool:
        del like
        return jax.dtypes.canonicalize_dtype(np.float64) == np.float64

    def power_of_two(self, exponent: Array) -> Array:
        # Its power is off in the last digits.
        return jnp.ldexp(jnp.ones_like(exponent), exponent.astype(jnp.int32))

    def is_traced(self, array: Array) -> bool:
        return isinstance(array, jax.core.Tracer)

    def rounded(self, array: Array, dtype: str) -> Array | None:  # noqa: ARG002
        return None  # it may flush what is subnormal
