"""Offer the primitives on PyTorch, on any device."""

from __future__ import annotations

import threading
from math import prod
from typing import TYPE_CHECKING, Any

import array_api_compat.torch as xp
import torch

from lowrank_ldu.backend.pivots import check_pivots, permutation_from_interchanges

if TYPE_CHECKING:
    import numpy as np

    from lowrank_ldu.backend.base import Array

_SCRATCH_BYTES = 1 << 22


class _Scratch(threading.local):
    """Keep memory for panels between factorizations.

    At most 4 MiB a thread. The C library gives freed blocks of this size back to the system, so that each call would
    pay for fresh pages, which at 4096 x 64 cost as much as the arithmetic.
    """

    def __init__(self) -> None:
        self._buffer = torch.empty(0, dtype=torch.uint8, device="cpu")

    def take(self, shape: tuple[int, ...], like: torch.Tensor) -> torch.Tensor:
        """Return an uninitialized tensor, valid until the next call.

        It is contiguous, of `like`'s dtype and device.
        """
        size = prod(shape) * like.element_size()
        if like.device.type != "cpu" or size > _SCRATCH_BYTES:
            return like.new_empty(shape)
        if self._buffer.numel() < size:
            self._buffer = torch.empty(size, dtype=torch.uint8, device="cpu")
        return self._buffer[:size].view(like.dtype).view(shape)


_scratch = _Scratch()


class TorchBackend:
    """Implement `Backend` on PyTorch."""

    name = "torch"
    xp: Any = xp
    in_place = True

    def lu(self, matrix: Array) -> tuple[Array, Array]:
        *stack, m, r = matrix.shape
        # A panel is a few columns of a wide matrix: copied row by row first, it is transposed for LAPACK in cache.
        rows = _scratch.take((*stack, m, r), matrix).copy_(matrix)
        packed = matrix.new_empty((*stack, r, m)).mT.copy_(rows)
        interchanges = torch.empty((*stack, min(m, r)), dtype=torch.int32, device=matrix.device)
        info = torch.empty(stack, dtype=torch.int32, device=matrix.device)
        torch.linalg.lu_factor_ex(packed, out=(packed, interchanges, info))
        check_pivots(packed, self)
        # torch.lu_unpack would build the dense m x m permutation matrix; the interchanges are few.
        permutation = permutation_from_interchanges(interchanges.cpu().numpy() - 1, m)
        return packed, self.from_numpy(permutation, matrix)

    def solve_triangular(self, triangle: Array, rhs: Array, *, lower: bool, unit_diagonal: bool) -> Array:
        # Transposed, a row-major right-hand side is what LAPACK wants: x^T T^T = b^T, solved where b stands.
        rhs = rhs.contiguous()
        torch.linalg.solve_triangular(
            triangle.mT, rhs.mT, upper=lower, left=False, unitriangular=unit_diagonal, out=rhs.mT
        )
        return rhs

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

    def power_of_two(self, exponent: Array) -> Array:
        return 2**exponent

    def is_traced(self, array: Array) -> bool:
        del array
        return torch.compiler.is_compiling()

    def rounded(self, array: Array, dtype: str) -> Array | None:
        return array.to(torch.float32).to(getattr(torch, dtype)).to(array.dtype)
