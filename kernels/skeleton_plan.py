"""Compute the skeleton plan.

The thin products of x and g are gathered from the base's own; the update is added in place.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch.nn.functional import linear

from lowrank_ldu.kernels.call import Gradients
from lowrank_ldu.kernels.core_gradients import adapter_gradients
from lowrank_ldu.kernels.cores import matrix_of
from lowrank_ldu.kernels.factored import pair_with_cores
from lowrank_ldu.kernels.gathered import gathered_product
from lowrank_ldu.kernels.triton_kernels.availability import obstacle

if TYPE_CHECKING:
    from torch import Tensor

    from lowrank_ldu.kernels.call import Adapters, Layer, Needs
    from lowrank_ldu.kernels.skeleton import Skeleton


def forward(x: Tensor, layer: Layer, adapters: Adapters) -> tuple[Tensor, Tensor]:
    """Return y (T, m) and a = x right^T (T, r).

    Notes
    -----
    T m n + T r m multiply-adds. With cores of zero y is bit for bit the base's: what is added to it is zero.
    """
    skeleton = _skeleton(layer)
    y = linear(x, layer.weight, layer.bias)
    gather = skeleton.rows, skeleton.triangle.T, layer.bias
    return y, _add_update(y, gather, layer.left.T, adapters)


def backward(gradient: Tensor, projected: Tensor, layer: Layer, adapters: Adapters, needs: Needs) -> Gradients:
    """Return the gradients of x, of cores and of scales.

    Each is None if not needed.

    Notes
    -----
    T m n + T r n multiply-adds. The update is added to dx. Through W alone, as (g + scatter(b K triangle)) W, it would
    take a copy of g, and b before dx: then a product with left instead of the one with right.
    """
    skeleton = _skeleton(layer)
    dx = gradient @ layer.weight if needs.x else None
    if dx is None:
        expanded = gradient @ layer.left
    elif skeleton.columns is None or skeleton.column_triangle is None:
        expanded = gradient @ layer.left
        dx.addmm_(*pair_with_cores(expanded, layer.right, adapters, transposed=True))
    else:
        gather = skeleton.columns, skeleton.column_triangle, None
        expanded = _add_update(dx, gather, layer.right, adapters, transposed=True)
    to_cores, to_scales = adapter_gradients(
        expanded, projected, adapters, need_cores=needs.cores, need_scales=needs.scales
    )
    return Gradients(dx, to_cores, to_scales)


def _add_update(
    outputs: Tensor,
    gather: tuple[Tensor, Tensor, Tensor | None],
    factor: Tensor,
    adapters: Adapters,
    *,
    transposed: bool = False,
) -> Tensor:
    """Add the update to outputs (T, m), and return the projection that is gathered from them (T, r)."""
    columns, transform, bias = gather
    if adapters.of_rows is None and _fused(outputs, len(columns)):
        from lowrank_ldu.kernels.triton_kernels.block_launch import skeleton_update  # noqa: PLC0415  # imports triton

        core = matrix_of(adapters.cores)
        return skeleton_update(outputs, gather, core if transposed else core.T, factor)
    projected = gathered_product(outputs, columns, transform, bias)
    outputs.addmm_(*pair_with_cores(projected, factor, adapters, transposed=transposed))
    return projected


def _fused(outputs: Tensor, rank: int) -> bool:
    """Return whether the Triton kernel gathers and adds in one pass."""
    if not outputs.is_cuda or obstacle(outputs.device, outputs.dtype) is not None:
        return False
    from lowrank_ldu.kernels.triton_kernels.configurations import SKELETON_RANK  # noqa: PLC0415  # imports triton

    return rank <= SKELETON_RANK and outputs.is_contiguous()


def _skeleton(layer: Layer) -> Skeleton:
    if layer.skeleton is None:
        raise ValueError("plan is 'skeleton' and there is no skeleton; accepted: what skeleton_of returns")
    return layer.skeleton
