"""Offer the primitives on CuPy."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import array_api_compat.cupy as xp
import cupy
import numpy as np
from cupyx.scipy.linalg import lu_factor, solve_triangular

from lowrank_ldu.backend.pivots import check_pivots, permutation_from_interchanges

if TYPE_CHECKING:
    from lowrank_ldu.backend.base import Array


class CupyBackend:
    """Implement `Backend` on CuPy.

    cuSOLVER's entry points take one matrix at a time here, so stacks are looped over.
    """

    name = "cupy"
    xp: Any = xp
    in_place = True

    def lu(self, matrix: Array) -> tuple[Array, Array]:
        packed = cupy.empty_like(matrix)
        interchanges = np.empty((*matrix.shape[:-2], min(matrix.shape[-2:])), dtype=np.int64)
        for position in np.ndindex(matrix.shape[:-2]):
            packed[position], swaps = lu_factor(matrix[position], check_finite=False)
            interchanges[position] = swaps.get()
        check_pivots(packed, self)
        return packed, cupy.asarray(permutation_from_interchanges(interchanges, matrix.shape[-2]))

    def solve_triangular(self, triangle: Array, rhs: Array, *, lower: bool, unit_diagonal: bool) -> Array:
        solution = cupy.empty_like(rhs)
        for position in np.ndindex(rhs.shape[:-2]):
            solution[position] = solve_triangular(
                triangle[position], rhs[position], lower=lower, unit_diagonal=unit_diagonal, check_finite=False
            )
        return solution

    def subtract_outer(self, matrix: Array, column: Array, row: Array) -> None:
        matrix -= column[:, None] * row

    def from_numpy(self, array: np.ndarray[Any, Any], like: Array) -> Array:
        with like.device:
            return cupy.asarray(array)

    def to_numpy(self, array: Array) -> np.ndarray[Any, Any]:
        host: np.ndarray[Any, Any] = cupy.asnumpy(array)
        return host

    def detach(self, array: Array) -> Array:
        return array

    def has_float64(self, like: Array) -> bool:
        del like
        return True

    def power_of_two(self, exponent: Array) -> Array:
        return cupy.ldexp(cupy.ones_like(exponent), exponent.astype(cupy.int32))

    def is_traced(self, array: Array) -> bool:
        del array
        return False

    def rounded(self, array: Array, dtype: str) -> Array | None:  # noqa: ARG002
        return None  # it has no bfloat16
