"""Gather the thin products from the base's own.

With a skeleton (`lowrank_ldu.kernels.skeleton`) the projection a = x right^T is in y, and b = g left in dx: of the
frozen layer, or of the sum of W and its update.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from lowrank_ldu.kernels.cores import apply_cores
from lowrank_ldu.kernels.skeleton import largest_amplification, relative_bias

if TYPE_CHECKING:
    from torch import Tensor

    from lowrank_ldu.kernels.call import Adapters, Layer


def gathered_product(outputs: Tensor, columns: Tensor, transform: Tensor, bias: Tensor | None = None) -> Tensor:
    """Return (outputs - bias)[:, columns] transform (T, r).

    It is computed in transform's dtype and rounded once to outputs'.

    Parameters
    ----------
    outputs : Tensor, shape (T, m)
    columns : Tensor, shape (r,)
    transform : Tensor, shape (r, r)
    bias : Tensor, shape (m,), optional
    """
    # Twice as fast as index_select in bfloat16, and as fast in float32.
    taken = torch.gather(outputs, 1, columns.expand(len(outputs), len(columns))).to(transform.dtype)
    if bias is not None:
        taken.sub_(bias.index_select(0, columns))
    return (taken @ transform).to(outputs.dtype)


def summed_projection(x: Tensor, y: Tensor, layer: Layer, adapters: Adapters) -> Tensor | None:
    """Return a = x right^T from the summed weight's output.

    None where too many digits would be lost.

    Parameters
    ----------
    x : Tensor, shape (T, n)
    y : Tensor, shape (T, m)
        x (W + left K right)^T + bias.
    layer : Layer
        With a skeleton.
    adapters : Adapters
        With one core.
    """
    skeleton = layer.skeleton
    assert skeleton is not None  # noqa: S101  # callers ask
    update = apply_cores(layer.left.index_select(0, skeleton.rows).double(), adapters, transposed=True)
    offsets = None if layer.bias is None else relative_bias(x, layer.bias, skeleton.rows)
    transform = _recovered(skeleton.triangle, update, layer.weight.index_select(0, skeleton.rows), layer.right, offsets)
    return None if transform is None else gathered_product(y, skeleton.rows, transform.T, layer.bias)


def summed_expansion(dx: Tensor, layer: Layer, adapters: Adapters) -> Tensor | None:
    """Return b = g left from g (W + left K right).

    None where too many digits would be lost, or the skeleton has no columns.
    """
    skeleton = layer.skeleton
    if skeleton is None or skeleton.columns is None or skeleton.column_triangle is None:
        return None
    update = apply_cores(layer.right.index_select(1, skeleton.columns).T.double(), adapters)
    picked = layer.weight.index_select(1, skeleton.columns).T
    transform = _recovered(skeleton.column_triangle.T, update, picked, layer.left.T)
    return None if transform is None else gathered_product(dx, skeleton.columns, transform.T)


def _recovered(
    triangle: Tensor, update: Tensor, picked: Tensor, factor: Tensor, offsets: Tensor | None = None
) -> Tensor | None:
    """Return H with a = z H^T for entries z of the summed output.

    As z = z_0 + a update^T and a = z_0 triangle^T, it is triangle (I + update triangle)^-1. The measure of the digits
    that are lost is the amplification of `lowrank_ldu.kernels.skeleton`, with H for the triangle. For the norms of the
    rows of W stand the sums of those and the update's: where they cancel, the sum is rounded all the same.

    Parameters
    ----------
    triangle : Tensor, shape (r, r)
    update : Tensor, shape (r, r)
        left[rows] K, in float64.
    picked, factor : Tensor, shape (r, n)
        Rows of W, and right = triangle picked.
    offsets : Tensor, shape (r,), optional
        The bias's entries over the norm of a row of x.
    """
    wide = triangle.double()
    system = update @ wide
    system.diagonal().add_(1)
    solved, info = torch.linalg.solve_ex(system, wide, left=False)
    norms = torch.linalg.vector_norm(factor, dim=1).double()
    summed = torch.linalg.vector_norm(picked, dim=1).double() + update.abs() @ norms
    if offsets is not None:
        summed += offsets
    allowed = largest_amplification(picked.dtype) * norms
    if int(info) or not bool((solved.abs() @ summed <= allowed).all()):
        return None
    transform: Tensor = solved.to(triangle.dtype)
    return transform
