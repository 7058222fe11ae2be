"""Apply cores and sum their gradients by adapter.

Blocks of many adapters are taken where they lie: rows are sorted by adapter, and each adapter's are one product. The
cores of all rows side by side would be T r b numbers, in fresh memory, against the A r b of the adapters.

Products of adapters with few rows each are one batch, in which lists of rows are filled up to the longest one. Where
that would more than quadruple the work, adapters are split by the number of their rows, to a power of four: no list is
then filled up to more than four times its length.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import torch

from lowrank_ldu.kernels.triton_kernels.availability import obstacle

if TYPE_CHECKING:
    from torch import Tensor

    from lowrank_ldu.kernels.call import Adapters

# Lists are filled up to at most this multiple of all uses together.
_FILLED = 4


class Group(NamedTuple):
    """Hold adapters with like numbers of rows, and their rows.

    Attributes
    ----------
    adapters : Tensor, shape (n,), optional
        Their numbers; all of them if not given.
    uses : Tensor, shape (n, w)
        Numbers t S + s of uses, each adapter's in order; T S where there are no more.
    """

    adapters: Tensor | None
    uses: Tensor


def groups_of(adapters: Adapters) -> list[Group]:
    """Return every adapter's uses, in groups.

    Uses of a number that is no adapter's are in none.
    """
    index, count = adapters.of_rows, len(adapters.cores)
    assert index is not None  # noqa: S101  # callers have rows with cores of their own
    uses = index.flatten().long()
    known = (uses >= 0) & (uses < count)
    ordered, order = torch.sort(torch.where(known, uses, count), stable=True)
    ends = torch.searchsorted(ordered, torch.arange(count, device=uses.device), right=True)
    sizes = torch.diff(ends, prepend=ends.new_zeros(1))
    longest = int(sizes.max()) if count else 0
    if not longest:
        return []
    order = torch.cat([order, order.new_tensor([len(uses)])])
    starts = ends - sizes
    if longest * count <= _FILLED * len(uses):
        return [Group(None, _lists(order, starts, sizes, longest))]
    groups, upper = [], 1
    while upper < 4 * longest:
        chosen = torch.nonzero((sizes > upper // 4) & (sizes <= upper))[:, 0]
        if len(chosen):
            lists = _lists(order, starts[chosen], sizes[chosen], min(upper, longest))
            groups.append(Group(chosen, lists))
        upper *= 4
    return groups


def _lists(order: Tensor, starts: Tensor, sizes: Tensor, width: int) -> Tensor:
    """Return lists of uses (n, width), filled up with the last of `order`."""
    place = torch.arange(width, device=order.device)
    inside = place < sizes[:, None]
    return order[torch.where(inside, starts[:, None] + place, len(order) - 1)]


def _padded(values: Tensor, adapters: Adapters, groups: int, *, scaled: bool = False) -> Tensor:
    """Return the rows of all uses, and a row of zeros, in cores' dtype (T S + 1, g, b)."""
    cores, index, scales = adapters
    assert index is not None  # noqa: S101
    tokens, uses = index.shape
    padded = cores.new_empty(tokens * uses + 1, values.shape[1])
    rows = padded[:-1].view(tokens, uses, values.shape[1])
    rows.copy_(values[:, None].expand_as(rows))
    if scaled and scales is not None:
        rows.mul_(scales[..., None].to(rows.dtype))
    padded[-1] = 0
    return padded.view(len(padded), groups, -1)


def _taken(padded: Tensor, uses: Tensor) -> Tensor:
    """Return the rows of lists of uses as (n, g, w, b)."""
    rows = padded.index_select(0, uses.flatten()).view(*uses.shape, *padded.shape[1:])
    return rows.transpose(1, 2)


def use_products(
    values: Tensor, adapters: Adapters, lists: list[Group], *, transposed: bool = False, scaled: bool = True
) -> Tensor:
    """Return the product of every use of a core (T, S, r).

    Parameters
    ----------
    values : Tensor, shape (T, r)
    adapters : Adapters
        Blocks (A, g, b, b).
    lists : list of Group
        Of `groups_of`.
    transposed : bool
        As for `apply_cores`.
    scaled : bool
        Times the uses' scales, if there are any.

    Returns
    -------
    Tensor, shape (T, S, r)
        Of cores' dtype; NaN where there is no such adapter.
    """
    cores, index, _ = adapters
    assert index is not None  # noqa: S101
    count, (groups, size) = index.numel(), cores.shape[1:3]
    padded = _padded(values, adapters, groups, scaled=scaled)
    product = torch.full_like(padded, float("nan"))
    for group in lists:
        chosen = cores if group.adapters is None else cores.index_select(0, group.adapters)
        rows = _taken(padded, group.uses) @ (chosen if transposed else chosen.mT)
        product.index_copy_(0, group.uses.flatten(), rows.transpose(1, 2).reshape(-1, groups, size))
    return product[:count].view(*index.shape, values.shape[1])


def grouped_product(values: Tensor, adapters: Adapters, *, transposed: bool = False) -> Tensor:
    """Return what `apply_cores` returns, for blocks of rows' own."""
    if _kernels_run(values, adapters):
        from lowrank_ldu.kernels.triton_kernels.block_launch import row_core_product  # noqa: PLC0415  # imports triton

        return row_core_product(values, adapters, transposed=transposed)
    products = use_products(values, adapters, groups_of(adapters), transposed=transposed)
    total = products[:, 0] if products.shape[1] == 1 else products.sum(dim=1)
    return total.to(values.dtype)


def grouped_gradients(
    expanded: Tensor, projected: Tensor, adapters: Adapters, *, need_cores: bool, need_scales: bool
) -> tuple[Tensor | None, Tensor | None]:
    """Return the gradients of blocks (A, g, b, b) and of scales (T, S).

    The former sums b_t a_t^T over the uses of each adapter, weighted by their scales.
    """
    if _kernels_run(projected, adapters):
        from lowrank_ldu.kernels.triton_kernels.block_launch import block_gradients  # noqa: PLC0415  # imports triton

        return block_gradients(expanded, projected, adapters, need_cores=need_cores, need_scales=need_scales)
    lists, to_scales = groups_of(adapters), None
    if need_scales:
        assert adapters.scales is not None  # noqa: S101  # they have a gradient
        products = use_products(projected, adapters, lists, scaled=False)
        to_scales = (products * expanded[:, None].to(products.dtype)).sum(dim=-1).to(adapters.scales.dtype)
    return _blocks_gradient(expanded, projected, adapters, lists) if need_cores else None, to_scales


def _kernels_run(values: Tensor, adapters: Adapters) -> bool:
    """Return whether there are kernels for it, which wait for no lengths of lists."""
    if not values.is_cuda or adapters.cores.dtype != torch.float32:
        return False
    return obstacle(values.device, values.dtype) is None


def _blocks_gradient(expanded: Tensor, projected: Tensor, adapters: Adapters, lists: list[Group]) -> Tensor:
    cores, groups = adapters.cores, adapters.cores.shape[1]
    left, right = _padded(expanded, adapters, groups, scaled=True), _padded(projected, adapters, groups)
    total = None
    for group in lists:
        summed = _taken(left, group.uses).mT @ _taken(right, group.uses)
        if group.adapters is None:
            return summed
        total = torch.zeros_like(cores) if total is None else total
        total.index_copy_(0, group.adapters, summed)
    return torch.zeros_like(cores) if total is None else total
