"""PyTorch, on any device that has LU."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import array_api_compat.torch as xp
import torch

from lowrank_ldu.backend.pivots import permutation_from_interchanges

if TYPE_CHECKING:
    import numpy as np

    from lowrank_ldu.backend.base import Array


class TorchBackend:
    """See `Backend`."""

    xp: Any = xp
    in_place = True

    def lu(self, matrix: Array) -> tuple[Array, Array]:
        # A panel is a few columns of a wide matrix: copied row by row first, it is transposed for LAPACK in cache.
        packed, interchanges, _ = torch.linalg.lu_factor_ex(matrix.contiguous())
        # torch.lu_unpack would build the dense m x m permutation matrix; the interchanges are few.
        permutation = permutation_from_interchanges(interchanges.cpu().numpy() - 1, matrix.shape[-2])
        return packed, self.from_numpy(permutation, matrix)

    def solve_triangular(self, triangle: Array, rhs: Array, *, lower: bool, unit_diagonal: bool) -> Array:
        # Transposed, a row-major right-hand side is what LAPACK wants: x^T T^T = b^T without copies.
        return torch.linalg.solve_triangular(
            triangle.mT, rhs.mT, upper=lower, left=False, unitriangular=unit_diagonal
        ).mT

    def subtract_outer(self, matrix: Array, column: Array, row: Array) -> None:
        matrix.addr_(column, row, alpha=-1)

    def from_numpy(self, array: np.ndarray[Any, Any], like: Array) -> Array:
        return torch.from_numpy(array).to(like.device)

    def to_numpy(self, array: Array) -> np.ndarray[Any, Any]:
        host: np.ndarray[Any, Any] = array.detach().cpu().numpy()
        return host

    def detach(self, array: Array) -> Array:
        return array.detach()

    def has_float64(self, like: Array) -> bool:
        return bool(like.device.type != "mps")
