"""Hold the chosen pivots of a model's layers, and keep them in a file."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from lowrank_ldu.errors import FittingError
from lowrank_ldu.fitting.cores import CoreShape
from lowrank_ldu.fitting.sealed_file import (
    Format,
    SealedFile,
    check_layers,
    checked_path,
    described,
    digest_of,
    write_sealed,
)
from lowrank_ldu.fitting.sums import SOURCES, Source
from lowrank_ldu.formatting import aligned, figure, printable
from lowrank_ldu.validation import check_choice, shown

if TYPE_CHECKING:
    import os
    from collections.abc import Iterator
    from pathlib import Path

    from torch import Tensor

    from lowrank_ldu.nn.cores import Core

FORMAT, VERSION = "lowrank-ldu pivots", 1
_INTEGERS = (torch.uint8, torch.int16, torch.int32, torch.int64)
_INTEGER_NAMES = {str(dtype).removeprefix("torch.") for dtype in _INTEGERS}


class LayerPivots(NamedTuple):
    """Hold the pivots of one layer, in the order of elimination.

    Attributes
    ----------
    rows, columns : tuple of int, length r
        W[rows[i], columns[i]] is the i-th pivot.
    """

    rows: tuple[int, ...]
    columns: tuple[int, ...]


@dataclass(frozen=True, eq=False)
class Pivots(Mapping[str, LayerPivots]):
    """Hold the pivots of a model's layers, by their names.

    Attributes
    ----------
    layers : mapping of str to LayerPivots
    shapes : mapping of str to (int, int)
        (m, n) of each layer's weight.
    held : mapping of str to float
        Share of the energy of the layer's gradient (or of its inputs and outputs) that the core can hold.
    core : str
    block_size : int or None
        Of core "block".
    source : str
        One of SOURCES.
    budget : int or None
        What was given.

    Raises
    ------
    FittingError
        A layer has no shape, or indices that are out of range, repeated, or not as many of each; core and block_size
        do not go together.

    Examples
    --------
    >>> pivots = Pivots({"0": LayerPivots((2, 0), (1, 3))}, {"0": (4, 4)}, {"0": 0.25}, "dense", None, "gradient", None)
    >>> pivots["0"].rows, pivots.rank_pattern, pivots.numbers
    ((2, 0), {'0': 2}, 4)
    """

    layers: Mapping[str, LayerPivots]
    shapes: Mapping[str, tuple[int, int]]
    held: Mapping[str, float]
    core: Core
    block_size: int | None
    source: Source
    budget: int | None

    def __post_init__(self) -> None:
        for name in ("layers", "shapes", "held"):
            object.__setattr__(self, name, MappingProxyType(dict(getattr(self, name))))
        self._check()

    def __getitem__(self, name: str) -> LayerPivots:
        return self.layers[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.layers)

    def __len__(self) -> int:
        return len(self.layers)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Pivots) and self.digest == other.digest

    def __hash__(self) -> int:
        return hash(self.digest)

    def __reduce__(self) -> tuple[type[Pivots], tuple[Any, ...]]:
        own = (dict(self.layers), dict(self.shapes), dict(self.held))
        return Pivots, (*own, self.core, self.block_size, self.source, self.budget)

    @property
    def rank_pattern(self) -> dict[str, int]:
        """Return the rank of each layer, as a new dict."""
        return {name: len(pivots.rows) for name, pivots in self.layers.items()}

    @property
    def numbers(self) -> int:
        """Return the trained numbers of all cores together."""
        shape = CoreShape.checked(self.core, self.block_size)
        return sum(shape.numbers(rank) for rank in self.rank_pattern.values())

    @property
    def digest(self) -> str:
        """Return the SHA-256 of the content, as hexadecimal digits."""
        return digest_of(self._record(self._tensors()))

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write the pivots to a file, whole or not at all.

        Parameters
        ----------
        path : path
            A file, which is replaced. It is a safetensors file of integers in the smallest type that fits.

        Returns
        -------
        Path

        Raises
        ------
        FittingError
            It cannot be written.
        """
        file, tensors = checked_path(path), self._tensors()
        write_sealed(file, tensors, self._record(tensors))
        return file

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Pivots:
        """Read what `save` wrote.

        Raises
        ------
        FittingError
            There is no such file, or it was cut short or changed, or holds what no pivots can be.
        """
        with SealedFile(checked_path(path), Format(FORMAT, VERSION, _check)) as file:
            record = file.record
            layers = {
                name: LayerPivots(
                    tuple(file.read(f"{name}.rows").tolist()), tuple(file.read(f"{name}.columns").tolist())
                )
                for name in record["layers"]
            }
        entries = record["layers"]
        shapes = {name: tuple(entry["shape"]) for name, entry in entries.items()}
        held = {name: float(entry["held"]) for name, entry in entries.items()}
        kind = (record["core"], record["block_size"], record["source"], record["budget"])
        try:
            return cls(layers, shapes, held, *kind)
        except FittingError as error:
            raise FittingError(f"{path}: {error}") from error

    def _check(self) -> None:
        try:
            shape = CoreShape.checked(self.core, self.block_size)
        except ValueError as error:
            raise FittingError(str(error)) from error
        for name, pivots in self.layers.items():
            if name not in self.shapes or name not in self.held:
                raise FittingError(f"layer {name!r} has no shape, or no energy held; accepted: one of each")
            rows, columns = pivots
            if len(rows) != len(columns) or not rows:
                raise FittingError(
                    f"layer {name!r} has {len(rows)} rows and {len(columns)} columns; accepted: as many of each, and "
                    "at least one"
                )
            try:
                shape.numbers(len(rows))
            except ValueError as error:
                raise FittingError(f"layer {name!r}: {error}") from error
            for key, indices, size in zip(LayerPivots._fields, pivots, self.shapes[name], strict=True):
                if min(indices) < 0 or max(indices) >= size or len(set(indices)) != len(indices):
                    raise FittingError(
                        f"layer {name!r} has {key} from {min(indices)} to {max(indices)}; accepted: different indices "
                        f"from 0 to {size - 1}"
                    )

    def _tensors(self) -> dict[str, Tensor]:
        found = {}
        for name, pivots in self.layers.items():
            for key, indices, size in zip(LayerPivots._fields, pivots, self.shapes[name], strict=True):
                found[f"{name}.{key}"] = torch.tensor(indices, dtype=_integer_for(size - 1))
        return found

    def _record(self, tensors: dict[str, Tensor]) -> dict[str, Any]:
        return {
            "format": FORMAT,
            "version": VERSION,
            "core": self.core,
            "block_size": self.block_size,
            "source": self.source,
            "budget": self.budget,
            "layers": {
                name: {"shape": list(self.shapes[name]), "held": self.held[name]} for name in sorted(self.layers)
            },
            "tensors": described(tensors),
        }

    def __str__(self) -> str:
        rows = [("layer", "m x n", "rank", "numbers", "energy held, %")]
        shape = CoreShape.checked(self.core, self.block_size)
        for name, rank in self.rank_pattern.items():
            m, n = self.shapes[name]
            rows.append(
                (printable(name), f"{m} x {n}", str(rank), str(shape.numbers(rank)), figure(100 * self.held[name]))
            )
        kind = f"{self.core} cores" if self.core != "block" else f"cores of blocks of {self.block_size}"
        return "\n".join([*aligned(rows), f"{len(self)} layers, {self.numbers} numbers in {kind}, by {self.source}"])


def _integer_for(largest: int) -> torch.dtype:
    return next(dtype for dtype in _INTEGERS if largest <= torch.iinfo(dtype).max)


def _check(record: dict[str, Any]) -> None:
    accepted = {"format", "version", "core", "block_size", "source", "budget", "layers", "tensors"}
    if set(record) != accepted:
        raise ValueError(f"the record has fields {sorted(record)}; accepted: {sorted(accepted)}")
    check_choice(record["source"], "source", SOURCES)
    for key in ("block_size", "budget"):
        if record[key] is not None and type(record[key]) is not int:
            raise ValueError(f"{key} is {shown(record[key])}; accepted: an integer, or None")
    CoreShape.checked(record["core"], record["block_size"])
    check_layers(record, {"held"}, LayerPivots._fields)
    for name, entry in record["layers"].items():
        if type(entry["held"]) not in {float, int}:
            raise ValueError(f"layer {name!r} has held {entry['held']!r}; accepted: a number")
    for name, entry in record["tensors"].items():
        if entry["dtype"] not in _INTEGER_NAMES or len(entry["shape"]) != 1:
            raise ValueError(f"tensor {name!r} is {entry['dtype']} {entry['shape']}; accepted: a list of integers")
