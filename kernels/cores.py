"""Apply the cores of adapters to projections.

A core K is the middle of an update left K right: a diagonal (r,), a dense matrix (r, r), or g blocks (g, b, b) on the
diagonal with g b = r. Past the public functions it is (A, r) or (A, g, b, b), a dense one a single block.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from lowrank_ldu.kernels.call import Adapters

if TYPE_CHECKING:
    from torch import Tensor


def core_product(projected: Tensor, core: Tensor) -> Tensor:
    """Return projected K^T for one core K.

    Parameters
    ----------
    projected : Tensor, shape (..., r)
        x right^T.
    core : Tensor, shape (r,), (r, r) or (g, b, b) with g b = r
        Of any floating dtype; used in float32 at least.

    Returns
    -------
    Tensor, shape (..., r)
        Of projected's dtype, with gradients of both and of any order.

    Examples
    --------
    >>> core_product(torch.tensor([1.0, 2.0]), torch.tensor([[0.0, 1.0], [3.0, 0.0]]))
    tensor([2., 3.])
    """
    wide = torch.float64 if torch.float64 in {core.dtype, projected.dtype} else torch.float32
    rows = projected.reshape(-1, projected.shape[-1])
    cores = as_blocks(core.to(wide)[None])
    return apply_cores(rows, Adapters(cores)).reshape(projected.shape)


def as_blocks(cores: Tensor) -> Tensor:
    """Return cores (A, r), (A, r, r) or (A, g, b, b) as diagonals or blocks.

    Blocks of one entry are a diagonal.
    """
    if cores.ndim == 3:
        cores = cores[:, None]
    if cores.ndim == 4 and cores.shape[-1] == 1:
        return cores.reshape(cores.shape[0], cores.shape[1])
    return cores


def matrix_of(cores: Tensor) -> Tensor:
    """Return the only one of cores (1, r) or (1, g, b, b) as a matrix (r, r)."""
    if cores.ndim == 2:
        return torch.diag(cores[0])
    if cores.shape[1] == 1:
        return cores[0, 0]
    groups, size = cores.shape[1:3]
    matrix = cores.new_zeros(groups, size, groups, size)
    places = torch.arange(groups, device=cores.device)
    matrix[places, :, places] = cores[0]
    return matrix.reshape(groups * size, groups * size)


def block_size(adapters: Adapters) -> int:
    """Return b of cores as callers give them; 1 of diagonals."""
    cores, index, _ = adapters
    return 1 if cores.ndim == (1 if index is None else 2) else cores.shape[-1]


def row_cores(adapters: Adapters) -> Tensor:
    """Return the core of every row, (T, r) or (T, g, b, b).

    If there is only one, it comes as it is.
    """
    cores, index, scales = adapters
    if index is None:
        return cores
    if not len(cores):
        # Nothing to gather from; still a function of cores, so that there is a gradient.
        nothing = cores.new_full((index.shape[0], *cores.shape[1:]), float("nan") if index.shape[1] else 0.0)
        return nothing + cores.sum(dim=0)
    trailing = (1,) * (cores.ndim - 1)
    known = (index >= 0) & (index < len(cores))
    rows = cores[torch.where(known, index, 0)]
    rows = torch.where(known.reshape(*known.shape, *trailing), rows, float("nan"))
    if scales is not None:
        rows = rows * scales.reshape(*scales.shape, *trailing).to(rows.dtype)
    return rows[:, 0] if index.shape[1] == 1 else rows.sum(dim=1)


def apply_cores(values: Tensor, adapters: Adapters, *, transposed: bool = False) -> Tensor:
    """Return each row of values (T, r) times its core's transpose.

    Parameters
    ----------
    values : Tensor, shape (T, r)
    adapters : Adapters
        Cores (A, r) or (A, g, b, b), in which it is computed.
    transposed : bool
        Times the core itself: the way of gradients, and left K.

    Returns
    -------
    Tensor, shape (T, r)
        Of values' dtype.

    Notes
    -----
    Blocks of rows of several adapters are gathered, T r b numbers; `lowrank_ldu.kernels.grouped` takes less.
    """
    cores = row_cores(adapters)
    if cores.ndim == 2:
        return (values * cores).to(values.dtype)
    cores = cores if transposed else cores.mT
    groups, size = cores.shape[1], cores.shape[2]
    wide = values.to(cores.dtype)
    if adapters.of_rows is None and groups == 1:
        return (wide @ cores[0, 0]).to(values.dtype)
    blocks = wide.reshape(len(values), groups, 1, size)
    if adapters.of_rows is None:
        # One product for each block, and not for each row.
        product = (blocks[:, :, 0].transpose(0, 1) @ cores[0]).transpose(0, 1)
    else:
        product = (blocks @ cores)[:, :, 0]
    return product.reshape(values.shape).to(values.dtype)
