"""Take ranks, pivots and factors from what was fitted to a task.

A configuration names the file: chosen pivots, or a fitted basis.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

from lowrank_ldu.adapters.bases import find_basis, given_basis
from lowrank_ldu.formatting import printable
from lowrank_ldu.nn.host import AdapterHost
from lowrank_ldu.nn.injection import ends_with
from lowrank_ldu.nn.modules import plain_name
from lowrank_ldu.validation import shown

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from torch import nn

    from lowrank_ldu.nn.cores import Core

# Layers that a message names.
_NAMED = 5


class LayerFit(NamedTuple):
    """Hold what was fitted for one layer.

    Attributes
    ----------
    rank : int
    rows, columns : tuple of int, length r, or None
        Chosen pivots, if any.
    shape : tuple of int, optional
        (m, n) of the weight that they were chosen in.
    """

    rank: int
    rows: tuple[int, ...] | None = None
    columns: tuple[int, ...] | None = None
    shape: tuple[int, int] | None = None


@dataclass(frozen=True)
class Fit:
    """Hold what was fitted for the layers of a model.

    It has numbers alone, and no open file: it is copied and pickled with a configuration.

    Attributes
    ----------
    source : str
        What messages call it.
    layers : dict of str to LayerFit
        By qualified name in the plain model.
    core, block_size
        What it was fitted for.
    """

    source: str
    layers: dict[str, LayerFit] = field(default_factory=dict)
    core: Core = "diagonal"
    block_size: int | None = None

    @property
    def largest_rank(self) -> int:
        """Return the largest rank of a layer."""
        return max(layer.rank for layer in self.layers.values())

    def of(self, name: str, pattern: int | None, limit: int) -> LayerFit:
        """Return what was fitted for a layer, for its own rank.

        Parameters
        ----------
        name : str
        pattern : int, optional
            What rank_pattern says of the layer.
        limit : int
            r of the configuration, which counts where the pattern says nothing.

        Raises
        ------
        ValueError
            There is nothing for this layer, or the pattern asks for a larger rank.
        """
        known = self.layers.get(name)
        if known is None:
            names = ", ".join(map(repr, list(self.layers)[:_NAMED]))
            more = ", ..." if len(self.layers) > _NAMED else ""
            raise ValueError(f"target module {name!r}: {self.source} has none of it; accepted: {names}{more}")
        if pattern is not None and pattern > known.rank:
            raise ValueError(
                f"target module {name!r}: rank is {pattern} by rank_pattern; accepted: up to {known.rank}, as "
                f"{self.source} has it"
            )
        rank = min(known.rank, limit) if pattern is None else pattern
        rows, columns = (None if index is None else index[:rank] for index in (known.rows, known.columns))
        return LayerFit(rank, rows, columns, known.shape)

    def targets(self, model: nn.Module) -> set[str] | str:
        """Return target_modules that match the layers and no others.

        These are their names, or a regular expression where a name would match another module as well.

        Raises
        ------
        ValueError
            The model has no such layer.
        """
        inside = tuple(f"{name}." for name, module in model.named_modules() if isinstance(module, AdapterHost))
        places = [name for name, _ in model.named_modules() if name and not name.startswith(inside)]
        by_name = {plain_name(place, model): place for place in reversed(places)}
        missing = next((name for name in self.layers if name not in by_name), None)
        if missing is not None:
            raise ValueError(
                f"layer {missing!r} of {self.source}: the model ({type(model).__name__}) has no such module; accepted: "
                "the model that it was made for, or target_modules"
            )
        chosen = {by_name[name] for name in self.layers}
        if any(ends_with(name, place) for place in places if place not in chosen for name in chosen):
            return "|".join(re.escape(name) for name in sorted(chosen))
        return chosen


def fit_of_pivots(path: str) -> Fit:
    """Return the fit of a file that `Pivots.save` wrote.

    Raises
    ------
    FittingError
        There is no such file, or it was changed.
    """
    from lowrank_ldu.fitting import Pivots  # noqa: PLC0415  # few configurations need it

    pivots = Pivots.load(path)
    layers = {
        name: LayerFit(len(rows), tuple(rows), tuple(columns), pivots.shapes[name])
        for name, (rows, columns) in pivots.items()
    }
    return Fit(printable(path), layers, pivots.core, pivots.block_size)


def fit_of_basis_file(path: str) -> tuple[str, Fit]:
    """Return the digest and the fit of a basis's file, which layers know then.

    Raises
    ------
    AdapterError
        There is no such file, or it was changed.
    """
    basis = given_basis(path)
    return basis.digest, _fit_of_ranks(basis.digest, basis.rank_pattern)


def fit_of_basis(digest: str, named: str | None, folder: Path | None) -> Fit:
    """Return the fit of a basis that is found by its digest.

    Raises
    ------
    AdapterError
        As for `find_basis`.
    """
    return _fit_of_ranks(digest, find_basis(digest, named, folder).rank_pattern)


def _fit_of_ranks(digest: str, ranks: Mapping[str, int]) -> Fit:
    return Fit(f"the fitted basis {digest[:16]}", {name: LayerFit(rank) for name, rank in ranks.items()})


def checked_file(path: object, name: str) -> str | None:
    """Return a field that names a file, as text.

    Raises
    ------
    TypeError
        It is no path.
    """
    text = os.fspath(path) if isinstance(path, str | os.PathLike) else path
    if text is not None and not isinstance(text, str):
        raise TypeError(f"{name} is {shown(path)}; accepted: the path of a file, or None")
    return text
