"""Offer the primitives on NumPy, by SciPy's LAPACK."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import array_api_compat.numpy as xp
import numpy as np
from scipy.linalg import get_blas_funcs, get_lapack_funcs

from lowrank_ldu.backend.pivots import check_pivots, permutation_from_interchanges

if TYPE_CHECKING:
    from lowrank_ldu.backend.base import Array


class NumpyBackend:
    """Implement `Backend` on NumPy and SciPy.

    LAPACK takes one matrix at a time, so stacks are looped over.
    """

    name = "numpy"
    xp: Any = xp
    in_place = True

    def lu(self, matrix: Array) -> tuple[Array, Array]:
        (getrf,) = get_lapack_funcs(("getrf",), dtype=matrix.dtype)
        packed = np.empty(matrix.shape, dtype=matrix.dtype)
        interchanges = np.empty((*matrix.shape[:-2], min(matrix.shape[-2:])), dtype=np.int64)
        for position in np.ndindex(matrix.shape[:-2]):
            packed[position], interchanges[position], _ = getrf(matrix[position])
        check_pivots(packed, self)
        return packed, permutation_from_interchanges(interchanges, matrix.shape[-2])

    def solve_triangular(self, triangle: Array, rhs: Array, *, lower: bool, unit_diagonal: bool) -> Array:
        (trsm,) = get_blas_funcs(("trsm",), dtype=rhs.dtype)
        solution = np.empty(rhs.shape, dtype=rhs.dtype)
        for position in np.ndindex(rhs.shape[:-2]):
            # BLAS wants column-major arrays: x^T T^T = b^T is the same system on the row-major ones, uncopied.
            solution[position] = trsm(
                1.0, triangle[position].T, rhs[position].T, side=1, lower=not lower, diag=unit_diagonal
            ).T
        return solution

    def subtract_outer(self, matrix: Array, column: Array, row: Array) -> None:
        (ger,) = get_blas_funcs(("ger",), dtype=matrix.dtype)
        if matrix.flags.f_contiguous:
            ger(-1.0, column, row, a=matrix, overwrite_a=1)
        else:
            ger(-1.0, row, column, a=matrix.T, overwrite_a=1)

    def from_numpy(self, array: np.ndarray[Any, Any], like: Array) -> Array:
        del like
        return array

    def to_numpy(self, array: Array) -> np.ndarray[Any, Any]:
        host: np.ndarray[Any, Any] = array
        return host

    def detach(self, array: Array) -> Array:
        return array

    def has_float64(self, like: Array) -> bool:
        del like
        return True

    def power_of_two(self, exponent: Array) -> Array:
        return 2**exponent

    def is_traced(self, array: Array) -> bool:
        del array
        return False

    def rounded(self, array: Array, dtype: str) -> Array | None:
        single = array.astype(np.float32)
        if dtype == "float16":
            return single.astype(np.float16).astype(array.dtype)
        # The upper half of the bits is the bfloat16; half of its last place is added, and less where that makes it odd.
        bits = single.view(np.uint32)
        rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) & np.uint32(0xFFFF0000)
        return np.where(np.isfinite(single), rounded.view(np.float32), single).astype(array.dtype)
