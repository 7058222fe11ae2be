"""Launch the kernels of the Triton plan.

Here are its passes, and the launch of each kernel (grid, block sizes, tuning).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
import triton

from lowrank_ldu.kernels.call import Adapters, Gradients, Layer
from lowrank_ldu.kernels.core_gradients import adapter_gradients, diagonals_gradient, scales_gradient
from lowrank_ldu.kernels.cores import apply_cores
from lowrank_ldu.kernels.triton_kernels import configurations
from lowrank_ldu.kernels.triton_kernels.block_launch import block_gradients, row_core_product, sorted_uses
from lowrank_ldu.kernels.triton_kernels.launcher import options_of, run

if TYPE_CHECKING:
    from torch import Tensor

    from lowrank_ldu.kernels.call import Needs

_LARGEST_TERM_BLOCK = {"project": 128, "expand": 64}
# Uses of one adapter that one program sums up; a longer list is split among several.
_USES_PER_PROGRAM, _MOST_SPLITS = 1024, 64
# Parts of all adapters together, which take memory: few adapters have many uses each, many adapters few.
_MOST_PARTS = 4096


def forward(x: Tensor, layer: Layer, adapters: Adapters) -> tuple[Tensor, Tensor]:
    """Return y (T, m) and a = x right^T (T, r).

    There is one launch for a decoding step with diagonals, and two for many rows. Blocks are applied in between.
    """
    few = 0 < len(x) <= configurations.DECODE_ROWS and len(layer.right) <= configurations.DECODE_RANK
    if few and adapters.cores.ndim == 2:
        return decode(x, layer, adapters)
    projected, _ = project(x, layer.right, upper=layer.upper)
    return expand(x, layer._replace(upper=False), *_with_blocks(projected, adapters)), projected


def backward(gradient: Tensor, projected: Tensor, layer: Layer, adapters: Adapters, needs: Needs) -> Gradients:
    """Return the gradients of x (T, n), of cores and of scales.

    The forward kernels run on the transposed matrices.
    """
    cores, index, scales = adapters
    diagonal = cores.ndim == 2
    other = projected if diagonal and (needs.cores or needs.scales) else None
    expanded, product = project(gradient, layer.left.T, upper=False, other=other)
    dx = to_cores = to_scales = None
    if needs.x:
        transposed = Layer(layer.weight.T, None, layer.right.T, layer.left.T, layer.upper)
        dx = expand(gradient, transposed, *_with_blocks(expanded, adapters, transposed=True))
    if not diagonal:
        gradients = adapter_gradients if index is None else block_gradients
        to_cores, to_scales = gradients(expanded, projected, adapters, need_cores=needs.cores, need_scales=needs.scales)
    elif product is not None:
        product = product.to(cores.dtype)
        if needs.cores and index is not None:
            to_cores = segment_sum(product, len(cores), index, scales)
        elif needs.cores:
            to_cores = diagonals_gradient(product, adapters)
        to_scales = scales_gradient(product, adapters) if needs.scales else None
    return Gradients(dx, to_cores, to_scales)


def _with_blocks(projected: Tensor, adapters: Adapters, *, transposed: bool = False) -> tuple[Tensor, Adapters]:
    """Return what the expansion takes.

    Blocks are applied to the projection, and ones stand for the diagonal then.
    """
    if adapters.cores.ndim == 2:
        return projected, adapters
    apply = apply_cores if adapters.of_rows is None else row_core_product
    ones = adapters.cores.new_ones(1, projected.shape[1])
    return apply(projected, adapters, transposed=transposed), Adapters(ones)


def project(x: Tensor, factor: Tensor, *, upper: bool, other: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
    """Return x (T, K) times factor (R, K) transposed.

    If there is `other` (T, R), its product with that comes too.

    Parameters
    ----------
    upper : bool
        factor is zero where its column is less than its row.
    """
    (tokens, inner), rank = x.shape, len(factor)
    out = x.new_empty(tokens, rank)
    product = None if other is None else x.new_empty(tokens, rank, dtype=torch.float32)
    if out.numel():
        block = configurations.term_block(rank, _LARGEST_TERM_BLOCK["project"])
        run(
            "project",
            lambda size: (triton.cdiv(tokens, size["BLOCK_T"]), triton.cdiv(rank, block)),
            x,
            factor,
            out,
            out if other is None else other,
            out if product is None else product,
            triton.next_power_of_2(tokens),
            tokens,
            inner,
            rank,
            *x.stride(),
            *factor.stride(),
            UPPER=upper,
            PRODUCT=other is not None,
            BLOCK_R=block,
            **options_of(x),
        )
    return out, product


def expand(x: Tensor, layer: Layer, projected: Tensor, adapters: Adapters) -> Tensor:
    """Return the expansion (T, M).

    It is x (T, K) weight (M, K)^T + bias + (projected (T, R) * delta) left (M, R)^T.

    Parameters
    ----------
    x, projected : Tensor
    layer : Layer
        `upper`: left is zero where its column is greater than its row. Its right is not read.
    adapters : Adapters
    """
    (tokens, inner), (out_features, rank) = x.shape, layer.left.shape
    y = x.new_empty(tokens, out_features)
    if y.numel():
        run(
            "expand",
            lambda size: (triton.cdiv(tokens, size["BLOCK_T"]) * triton.cdiv(out_features, size["BLOCK_M"]),),
            x,
            layer.weight,
            y if layer.bias is None else layer.bias,
            projected,
            layer.left,
            *_pointers(adapters, y),
            y,
            triton.next_power_of_2(tokens),
            tokens,
            inner,
            out_features,
            rank,
            len(adapters.cores),
            *x.stride(),
            *layer.weight.stride(),
            *layer.left.stride(),
            BIAS=layer.bias is not None,
            UPPER=layer.upper,
            BLOCK_R=configurations.term_block(rank, _LARGEST_TERM_BLOCK["expand"]),
            **_rowwise(adapters),
            **options_of(x),
        )
    return y


def decode(x: Tensor, layer: Layer, adapters: Adapters) -> tuple[Tensor, Tensor]:
    """Return y (T, m) and a = x right^T (T, r).

    One launch computes both, for T and r up to DECODE_ROWS and DECODE_RANK.
    """
    (tokens, inner), (out_features, rank) = x.shape, layer.left.shape
    y, projected = x.new_empty(tokens, out_features), x.new_empty(tokens, rank)
    run(
        "decode",
        lambda size: (triton.cdiv(out_features, size["BLOCK_M"]),),
        x,
        layer.weight,
        y if layer.bias is None else layer.bias,
        layer.left,
        layer.right,
        *_pointers(adapters, y),
        y,
        projected,
        tokens,
        inner,
        out_features,
        rank,
        len(adapters.cores),
        *x.stride(),
        *layer.weight.stride(),
        *layer.left.stride(),
        *layer.right.stride(),
        BIAS=layer.bias is not None,
        BLOCK_T=configurations.DECODE_ROWS,
        BLOCK_R=configurations.term_block(rank, configurations.DECODE_RANK),
        **_rowwise(adapters),
        **options_of(x),
    )
    return y, projected


def _pointers(adapters: Adapters, y: Tensor) -> list[Tensor]:
    """Return diagonals, numbers and scales.

    y stands for what is absent, and is not read.
    """
    return [y if tensor is None else tensor for tensor in adapters]


def _rowwise(adapters: Adapters) -> dict[str, Any]:
    uses = 0 if adapters.of_rows is None else adapters.of_rows.shape[1]
    return {"USES": uses, "SCALED": adapters.scales is not None}


def segment_sum(product: Tensor, adapters: int, index: Tensor, scales: Tensor | None) -> Tensor:
    """Return each adapter's sum of rows (adapters, r).

    The rows of product (T, R) are always summed in the same order.
    """
    rank = product.shape[1]
    if not (product.numel() and adapters):
        return product.new_zeros(adapters, rank)
    order, offsets = sorted_uses(index, adapters)
    splits = min(_MOST_SPLITS, triton.cdiv(index.numel(), _USES_PER_PROGRAM), max(1, _MOST_PARTS // adapters))
    block = configurations.term_block(rank, _LARGEST_TERM_BLOCK["expand"])
    parts = product.new_empty(splits, adapters, rank)
    run(
        "segment",
        (adapters, triton.cdiv(rank, block), splits),
        product,
        order,
        offsets,
        product if scales is None else scales,
        parts,
        rank,
        adapters,
        USES=index.shape[1],
        SCALED=scales is not None,
        SPLITS=splits,
        BLOCK_R=block,
    )
    return parts.sum(dim=0)
