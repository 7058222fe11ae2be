"""Compute with the core K of an update left K right.

K is a diagonal (r,), or blocks (g, b, b) on its diagonal with g b = r. One block is a dense core. Further dimensions in
front count adapters or rows, so that one or two dimensions are always diagonals, and three or four blocks.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, get_args

import torch

from lowrank_ldu.kernels import core_product

if TYPE_CHECKING:
    from torch import Tensor

Core = Literal["diagonal", "block", "dense"]
CORES: tuple[Core, ...] = get_args(Core)
# Dimensions of diagonals, (r,) and (A, r).
_DIAGONALS = 2
# Ranks up to which a message lists the divisors: a file may name any number.
_LARGEST_LISTED = 10_000
# Dimensions of a single core, (r,) or (g, b, b).
_OF_ONE = (1, 3)


def core_shape(core: Core, rank: int, block_size: int | None = None) -> tuple[int, ...]:
    """Return the shape of a core's numbers.

    It is (r,) for a diagonal, and (g, b, b) with g b = r for blocks.

    Raises
    ------
    ValueError
        The rank is no multiple of the block size.

    Examples
    --------
    >>> core_shape("diagonal", 6), core_shape("block", 6, 2), core_shape("dense", 6)
    ((6,), (3, 2, 2), (1, 6, 6))
    """
    if core == "diagonal":
        return (rank,)
    size = rank if core == "dense" or block_size is None else block_size
    if rank % size:
        divisors = [str(each) for each in range(1, min(rank, _LARGEST_LISTED) + 1) if rank % each == 0]
        listed = ", ".join(divisors) if rank <= _LARGEST_LISTED else "such as 1"
        raise ValueError(f"block_size is {size} at rank {rank}; accepted: a divisor of it, {listed}")
    return (rank // size, size, size)


def scaled_core(core: Tensor, scale: Tensor) -> Tensor:
    """Return K diag(scale), for scale (r,)."""
    if core.ndim <= _DIAGONALS:
        return core * scale
    return core * scale.reshape(core.shape[-3], 1, core.shape[-1])


def times_core(matrix: Tensor, core: Tensor) -> Tensor:
    """Return matrix K, for a matrix (..., r) and one core.

    Examples
    --------
    >>> import torch
    >>> times_core(torch.ones(1, 2), torch.tensor([[[1.0, 2.0], [3.0, 4.0]]]))
    tensor([[4., 6.]])
    """
    return core_product(matrix, core if core.ndim == 1 else core.mT)


def apply_core(projected: Tensor, core: Tensor) -> Tensor:
    """Return a K^T for projections a (..., r).

    Parameters
    ----------
    projected : Tensor, shape (..., r), or (B, ..., r)
    core : Tensor
        One core, or one for each of the B rows of the batch.

    Returns
    -------
    Tensor, of projected's shape and dtype

    Examples
    --------
    >>> import torch
    >>> apply_core(torch.ones(1, 2), torch.tensor([[[1.0, 2.0], [3.0, 4.0]]]))
    tensor([[3., 7.]])
    """
    if core.ndim in _OF_ONE:
        return core_product(projected, core)
    core = core.to(projected.dtype)
    if core.ndim == _DIAGONALS:
        return projected * core.reshape(len(core), *(1,) * (projected.ndim - 2), core.shape[1])
    parts = projected.reshape(len(projected), -1, *core.shape[1:3])
    return torch.einsum("btgj,bgij->btgi", parts, core).reshape(projected.shape)
