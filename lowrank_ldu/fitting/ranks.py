"""Check the ranks that a caller gives."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from lowrank_ldu.fitting.targets import naming
from lowrank_ldu.validation import check_rank

if TYPE_CHECKING:
    from collections.abc import Sequence

    from lowrank_ldu.fitting.targets import TargetLayer


def check_one_given(rank: object, budget: object) -> None:
    """Raise ValueError unless one of rank and budget is given."""
    if (rank is None) == (budget is None):
        raise ValueError(f"rank is {rank!r} and budget is {budget!r}; accepted: one of them, the other None")


def checked_ranks(rank: object, layers: Sequence[TargetLayer]) -> dict[str, int]:
    """Return the rank of each layer, from one or a pattern.

    Raises
    ------
    TypeError, ValueError
        A rank is no integer, or larger than its layer; a pattern lacks a layer, or has another.
    """
    names = [layer.name for layer in layers]
    if isinstance(rank, Mapping):
        odd = [name for name in (*rank, *names) if name not in rank or name not in names]
        if odd:
            where = "is no target" if odd[0] in rank else "has no rank"
            raise ValueError(
                f"rank: layer {odd[0]!r} {where}; accepted: the rank of every target, and of no other layer"
            )
    else:
        rank = dict.fromkeys(names, rank)
    found = {}
    for layer in layers:
        with naming(layer):
            found[layer.name] = check_rank(rank[layer.name], min(layer.weight().shape), optional=False)
    return found
