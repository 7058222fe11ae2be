"""Sum the gradients of cores and of the scales of their mixes.

With a = x right^T and b = g left they are sums over rows of b a^T, of a diagonal's of a * b.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from lowrank_ldu.kernels.grouped import grouped_gradients

if TYPE_CHECKING:
    from torch import Tensor

    from lowrank_ldu.kernels.call import Adapters


def adapter_gradients(
    expanded: Tensor, projected: Tensor, adapters: Adapters, *, need_cores: bool, need_scales: bool
) -> tuple[Tensor | None, Tensor | None]:
    """Return the gradients of cores and of scales.

    Parameters
    ----------
    expanded : Tensor, shape (T, r)
        b = g left; may be overwritten.
    projected : Tensor, shape (T, r)
        a = x right^T.
    adapters : Adapters
        Rows of a number that is no adapter's add to none.
    need_cores, need_scales : bool
        Each gradient is None if not needed.
    """
    cores, index, _ = adapters
    if not (need_cores or need_scales):
        return None, None
    if cores.ndim == 2:
        # In the projection's own memory where it is as wide as the diagonal: new pages cost more than the product.
        product = expanded.to(cores.dtype).mul_(projected)
        to_cores = diagonals_gradient(product, adapters) if need_cores else None
        return to_cores, scales_gradient(product, adapters) if need_scales else None
    if index is None:
        return _blocks_gradient(expanded.to(cores.dtype), projected.to(cores.dtype), cores), None
    return grouped_gradients(expanded, projected, adapters, need_cores=need_cores, need_scales=need_scales)


def _blocks_gradient(expanded: Tensor, projected: Tensor, cores: Tensor) -> Tensor:
    groups, size = cores.shape[1:3]
    if groups == 1:
        return (expanded.T @ projected)[None, None]
    shape = (len(expanded), groups, size)
    return (expanded.reshape(shape).permute(1, 2, 0) @ projected.reshape(shape).transpose(0, 1))[None]


def diagonals_gradient(product: Tensor, adapters: Adapters) -> Tensor:
    """Return the gradient of diagonals (A, r).

    It sums the rows of a * b (T, r), which are of cores' dtype, by adapter.
    """
    cores, index, scales = adapters
    if index is None:
        return product.sum(dim=0, keepdim=True)
    total = torch.zeros_like(cores)
    if not len(cores):
        return total
    for use in range(index.shape[1]):
        chosen = index[:, use]
        known = (chosen >= 0) & (chosen < len(cores))
        rows = product if scales is None else product * scales[:, use, None].to(product.dtype)
        total.index_add_(0, torch.where(known, chosen, 0), torch.where(known[:, None], rows, 0))
    return total


def scales_gradient(product: Tensor, adapters: Adapters) -> Tensor:
    """Return the gradient of the scales (T, S) of diagonals.

    It sums a * b (T, r) times the adapters' diagonals.
    """
    cores, index, scales = adapters
    assert index is not None  # noqa: S101  # scales are of an index
    assert scales is not None  # noqa: S101
    if not index.shape[1] or not len(cores):
        return torch.full_like(scales, float("nan"))
    parts = []
    for use in range(index.shape[1]):
        chosen = index[:, use]
        known = (chosen >= 0) & (chosen < len(cores))
        rows = (product * cores[torch.where(known, chosen, 0)]).sum(dim=1)
        parts.append(torch.where(known, rows, float("nan")))
    return torch.stack(parts, dim=1).to(scales.dtype)
