"""Find the weights of a base that an adapter's updates are of."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from lowrank_ldu.analysis.selection import matrix_shape
from lowrank_ldu.checkpoints.formats.lora_folder import adapted_name

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from lowrank_ldu.checkpoints import CheckpointReader, TensorInfo
    from lowrank_ldu.checkpoints.weights import WeightsReader


def matrix_names(base: WeightsReader) -> set[str]:
    """Return the names of all matrices of a base, also of those that are taken apart."""
    wholes = (base.whole_of(info.name) for info in base.tensors)
    return {info.name for info in base.tensors} | {whole.name for whole in wholes if whole is not None}


def updated_name(module: str, names: Iterable[str]) -> str:
    """Return the name of the weight that an update of a module is of.

    Where the base has none of the names that it may have, ``weight`` in the module.

    Examples
    --------
    >>> updated_name("layers.0.attn", {"layers.0.attn.in_proj_weight"})
    'layers.0.attn.in_proj_weight'
    >>> updated_name("layers.0.attn.base_layer.out_proj", set())
    'layers.0.attn.out_proj.weight'
    """
    module = adapted_name(module)
    candidates = module, f"{module}.weight", f"{module}.in_proj_weight"
    return next((name for name in candidates if name in names), candidates[1])


def in_shape_of_weights(base: WeightsReader, updates: Mapping[str, TensorInfo]) -> dict[str, TensorInfo]:
    """Give updates the shape of their weights, where the adapter knows the matrix alone, or not even that.

    Parameters
    ----------
    base : WeightsReader
    updates : mapping of str to TensorInfo
        By the name that the base has for the updated matrix.
    """
    weights = {info.name: info for info in base.tensors}
    weights |= {whole.name: whole for name in list(weights) if (whole := base.whole_of(name)) is not None}
    result = {}
    for name, update in updates.items():
        weight, shape = weights.get(name), update.shape
        if weight is not None and len(weight.shape) > 1 and shape in {(), matrix_shape(weight.shape, weight.order)}:
            shape = tuple(weight.shape[axis] for axis in weight.order) if weight.order else weight.shape
        result[name] = replace(update, shape=shape)
    return result


def parts_of_updates(base: WeightsReader, updates: Mapping[str, TensorInfo]) -> dict[str, TensorInfo]:
    """Return the update of each weight that is a part of an updated matrix.

    Each is called as the adapter calls the whole one, and has the shape and the order of the weight. Where the whole
    matrix has another shape than the update there is none.

    Parameters
    ----------
    base : WeightsReader
    updates : mapping of str to TensorInfo
        By the name that the base has for the updated matrix.
    """
    parts = {}
    for info in base.tensors:
        whole = base.whole_of(info.name)
        update = None if whole is None else updates.get(whole.name)
        if whole is not None and update is not None and update.shape == matrix_shape(whole.shape, whole.order):
            parts[info.name] = replace(update, shape=info.shape, order=info.order, part_of=whole.name)
    return parts


def named_by(adapter: CheckpointReader) -> Iterator[tuple[str, str]]:
    """Yield what an adapter has something of that is no update: a module or a tensor, and the stored name."""
    for stored in adapter.ignored:
        yield adapted_name(stored), stored


def owner(name: str) -> tuple[str, str]:
    """Return a weight's name as it is stored, and the module that it is in.

    Examples
    --------
    >>> owner("h.0.attn.c_attn.weight[q]")
    ('h.0.attn.c_attn.weight', 'h.0.attn.c_attn')
    """
    stored = name.partition("[")[0]
    return stored, stored.rpartition(".")[0]
