"""Check the ranks that a caller gives."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from lowrank_ldu.fitting.targets import naming
from lowrank_ldu.validation import check_count, check_rank

if TYPE_CHECKING:
    from collections.abc import Sequence

    from lowrank_ldu.fitting.cores import CoreShape
    from lowrank_ldu.fitting.targets import TargetLayer


def check_one_given(rank: object, budget: object) -> None:
    """Raise ValueError unless one of rank and budget is given."""
    if (rank is None) == (budget is None):
        raise ValueError(f"rank is {rank!r} and budget is {budget!r}; accepted: one of them, the other None")


def checked_ranks(rank: object, layers: Sequence[TargetLayer], shape: CoreShape) -> dict[str, int]:
    """Return the rank of each layer, from one or a pattern.

    Raises
    ------
    TypeError, ValueError
        A rank is no integer, larger than its layer, or no multiple of the block size; a pattern lacks a layer, or has
        another.
    """
    names = [layer.name for layer in layers]
    if isinstance(rank, Mapping):
        odd = [name for name in (*rank, *names) if name not in rank or name not in names]
        if odd:
            where = "is no target" if odd[0] in rank else "has no rank"
            raise ValueError(f"rank: layer {odd[0]!r} {where}; accepted: a rank for each target and no other layer")
    else:
        rank = dict.fromkeys(names, rank)
    found = {}
    for layer in layers:
        with naming(layer):
            found[layer.name] = check_rank(rank[layer.name], min(layer.weight().shape), optional=False)
            shape.numbers(found[layer.name])
    return found


def check_budget(budget: object, layers: Sequence[TargetLayer], shape: CoreShape) -> None:
    """Raise ValueError unless each layer can have its least rank."""
    for layer in layers:
        if shape.steps(min(layer.weight().shape)) < 1:
            raise ValueError(
                f"layer {layer.name!r}: block_size is {shape.block_size}; accepted: up to {min(layer.weight().shape)}"
            )
    least = len(layers) * shape.numbers(shape.block_size)
    if check_count(budget, "budget", 1) < least:
        raise ValueError(
            f"budget is {budget}; accepted: at least {least}, the least rank for each of {len(layers)} layers, or "
            "fewer targets"
        )
