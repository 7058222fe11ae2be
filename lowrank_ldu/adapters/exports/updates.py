"""Compute a layer's update from its base on disk."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import torch

from lowrank_ldu.errors import AdapterError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import Tensor

    from lowrank_ldu.adapters.exports.base import BaseModel
    from lowrank_ldu.adapters.stored_layer import AdapterFile, StoredLayer
    from lowrank_ldu.nn.base_identity import Deviation
    from lowrank_ldu.nn.host import HeldAdapter

# Size of the rows that are compared at a time: a weight that is larger in float64 is checked part by part.
_BLOCK_BYTES = 64 * 2**20


class Bound(NamedTuple):
    """Hold a layer's numbers on its base weight.

    Attributes
    ----------
    weight : Tensor
        As it is stored.
    held : HeldAdapter
    """

    weight: Tensor
    held: HeldAdapter


def check_module_tensor(tensor: Tensor, name: str) -> Tensor:
    """Return a tensor that is written as it is, checked.

    It was trained whole.

    Raises
    ------
    AdapterError
        It holds entries that are not finite.
    """
    # torch cannot check whether numbers of eight bits are finite.
    if tensor.is_floating_point() and not bool((tensor if tensor.itemsize > 1 else tensor.float()).isfinite().all()):
        raise AdapterError(f"module tensor {name!r} holds entries that are not finite; accepted: finite numbers")
    return tensor


def base_weight(adapter: AdapterFile, layer: StoredLayer, base: BaseModel, name: str) -> Tensor:
    """Return the weight that a layer was trained on.

    It is the base's, or the one that PEFT saved beside the adapter.

    Raises
    ------
    AdapterError
        It is stored quantized. A saved one of the base's shape is not looked at: `StoredLayer.bind` compares the base
        with what the adapter has sampled.
    """
    weight = base.tensor(name)
    own = adapter.base_weights.get(layer.name)
    if own is not None and own.shape != weight.shape:
        return own
    if not weight.is_floating_point():
        raise AdapterError(
            f"layer {layer.name!r}: {name!r} is stored as {str(weight.dtype).removeprefix('torch.')}; accepted: a base "
            "with floating numbers"
        )
    return weight


def is_of_base(tensor: Tensor, base: BaseModel, name: str | None) -> bool:
    """Return whether a wholly saved tensor is the base's.

    PEFT saves embeddings that nobody trained.
    """
    if name is None or name not in base:
        return False
    stored = base.tensor(name)
    return stored.shape == tensor.shape and torch.equal(stored, tensor.to(stored.dtype))


def bound(
    adapter: AdapterFile,
    layer: StoredLayer,
    base: BaseModel,
    name: str,
    passed: list[Deviation],
    *,
    accept_other_base: bool,
) -> Bound:
    """Put a layer's numbers on its base weight.

    A deviation that `accept_other_base` lets pass is added to `passed`.

    Raises
    ------
    AdapterError
        As for `StoredLayer.bind`.
    """
    weight = base_weight(adapter, layer, base, name)
    held, deviation = layer.rebuild(layer.kind.as_matrix(weight), "warn" if accept_other_base else "error")
    passed.extend([] if deviation is None else [deviation])
    return Bound(weight, held)


def bound_again(adapter: AdapterFile, layer: StoredLayer, base: BaseModel, name: str) -> Bound:
    """Put a layer's numbers on its base weight once more.

    It does what `bound` did, and says nothing of the deviations that passed then.
    """
    weight = base_weight(adapter, layer, base, name)
    held, _ = layer.rebuild(layer.kind.as_matrix(weight), "ignore")
    return Bound(weight, held)


def row_blocks(rows: int, columns: int) -> Iterator[slice]:
    """Yield slices that cover the rows of a matrix.

    Each has a bounded number of float64 entries.
    """
    step = max(1, _BLOCK_BYTES // (8 * max(columns, 1)))
    for start in range(0, rows, step):
        yield slice(start, min(start + step, rows))


def check_update(update: Tensor, pair: tuple[Tensor, Tensor], name: str) -> None:
    """Compare a written dense update with the product of its pair.

    This is done in blocks of rows.

    Raises
    ------
    AdapterError
        They differ by more than rounding.
    """
    left, right = pair
    if tuple(update.shape) != (left.shape[0], right.shape[1]):
        raise AdapterError(f"export failed its check: tensor {name!r} has another shape than the update")
    # The rounding of a sum of r terms in the dtype that it was summed in, and of the result in its own.
    relative = (right.shape[0] + 2) * torch.finfo(left.dtype).eps + torch.finfo(update.dtype).eps
    for rows in row_blocks(*update.shape):
        exact = left[rows].double() @ right.double()
        allowed = relative * product_error(left[rows], right) + torch.finfo(update.dtype).tiny
        if not bool(((update[rows].double() - exact).abs() <= allowed).all()):
            raise AdapterError(f"export failed its check: tensor {name!r} is not the update")


def product_error(left: Tensor, right: Tensor) -> Tensor:
    """Return a bound of the summed magnitudes in a product.

    It bounds those of each entry of left (m, r) @ right (r, n), shape (m, n).
    """
    return torch.outer(left.double().norm(dim=1), right.double().norm(dim=0))
