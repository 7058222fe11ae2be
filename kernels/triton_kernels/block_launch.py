"""Launch the kernels of block cores and of the skeleton plan."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import triton

from lowrank_ldu.kernels.triton_kernels import configurations
from lowrank_ldu.kernels.triton_kernels.launcher import options_of, run

if TYPE_CHECKING:
    from torch import Tensor

    from lowrank_ldu.kernels.call import Adapters


def row_core_product(values: Tensor, adapters: Adapters, *, transposed: bool = False) -> Tensor:
    """Return each row of values (T, r) times its core's transpose, as `apply_cores` does.

    Parameters
    ----------
    values : Tensor, shape (T, r)
    adapters : Adapters
        Blocks (A, g, b, b) in float32 for rows of their own.
    transposed : bool
        Times the core itself.
    """
    cores, index, scales = adapters
    assert index is not None  # noqa: S101  # callers have rows with cores of their own
    values, cores = values.contiguous(), cores.contiguous()
    (tokens, rank), (count, groups, size) = values.shape, cores.shape[:3]
    out = values.new_empty(tokens, rank)
    if not out.numel():
        return out
    out_stride, in_stride = (1, size) if transposed else (size, 1)
    block = configurations.term_block(size, configurations.LARGEST_CORE_BLOCK)
    run(
        "core",
        (tokens, groups, triton.cdiv(size, block)),
        values,
        cores if count else values,
        index.contiguous(),
        values if scales is None else scales.contiguous(),
        out,
        rank,
        count,
        size * size,
        out_stride,
        in_stride,
        size,
        USES=index.shape[1],
        SCALED=scales is not None,
        BLOCK_OUT=block,
        BLOCK_IN=block,
    )
    return out


def block_gradients(
    expanded: Tensor, projected: Tensor, adapters: Adapters, *, need_cores: bool, need_scales: bool
) -> tuple[Tensor | None, Tensor | None]:
    """Return the gradients of blocks and of scales, as `adapter_gradients` does for rows of their own."""
    cores, index, scales = adapters
    assert index is not None  # noqa: S101
    to_cores = outer_sums(expanded, projected, adapters) if need_cores else None
    to_scales = None
    if need_scales:
        assert scales is not None  # noqa: S101
        tokens, uses = index.shape
        repeated = projected.float().repeat_interleave(uses, dim=0)
        products = row_core_product(repeated, adapters._replace(of_rows=index.reshape(-1, 1), scales=None))
        products = products.view(tokens, uses, -1)
        to_scales = (products * expanded[:, None].to(cores.dtype)).sum(dim=-1).to(scales.dtype)
    return to_cores, to_scales


def outer_sums(expanded: Tensor, projected: Tensor, adapters: Adapters) -> Tensor:
    """Return each adapter's sum of b_t a_t^T in blocks (A, g, b, b), always in the same order.

    Parameters
    ----------
    expanded, projected : Tensor, shape (T, r)
        b and a.
    adapters : Adapters
    """
    cores, index, scales = adapters
    assert index is not None  # noqa: S101
    count, groups, size = cores.shape[:3]
    if not (expanded.numel() and count):
        return torch.zeros_like(cores)
    order, offsets = sorted_uses(index, count)
    # Contiguous whatever the cores are.
    out = cores.new_empty(count, groups, size, size)
    block = configurations.term_block(size, configurations.LARGEST_CORE_BLOCK)
    run(
        "outer",
        (count, groups, triton.cdiv(size, block) ** 2),
        expanded.contiguous(),
        projected.contiguous(),
        order,
        offsets,
        expanded if scales is None else scales.contiguous(),
        out,
        expanded.shape[1],
        size,
        USES=index.shape[1],
        SCALED=scales is not None,
        BLOCK_OUT=block,
        BLOCK_IN=block,
    )
    return out


def sorted_uses(index: Tensor, adapters: int) -> tuple[Tensor, Tensor]:
    """Return uses in the order of their adapters, and where each adapter's begin."""
    ordered, order = torch.sort(index.flatten(), stable=True)
    return order, torch.searchsorted(ordered, torch.arange(adapters + 1, device=index.device))


def skeleton_update(
    outputs: Tensor, gather: tuple[Tensor, Tensor, Tensor | None], core: Tensor, factor: Tensor
) -> Tensor:
    """Add the update to outputs (T, M), and return the projection (T, r).

    Parameters
    ----------
    outputs : Tensor, shape (T, M)
        Contiguous.
    gather : tuple
        Numbers of columns (r,), a transform (r, r), and a bias (M,) or None: the projection is (outputs - bias)[:,
        numbers] transform.
    core : Tensor, shape (r, r)
    factor : Tensor, shape (r, M)
        The update is the projection times core times factor.
    """
    (tokens, features), (numbers, transform, bias) = outputs.shape, gather
    rank = len(numbers)
    projected = outputs.new_empty(tokens, rank)
    if projected.numel():
        run(
            "skeleton",
            lambda size: (triton.cdiv(tokens, size["BLOCK_T"]),),
            outputs,
            outputs if bias is None else bias,
            numbers.contiguous(),
            transform.float().contiguous(),
            core.float().contiguous(),
            factor,
            projected,
            triton.next_power_of_2(tokens),
            tokens,
            features,
            rank,
            *factor.stride(),
            BIAS=bias is not None,
            BLOCK_R=configurations.term_block(rank, configurations.SKELETON_RANK),
            **options_of(outputs),
        )
    return projected
