"""Hold fitted factors of a model's layers, and keep them in a file."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple, Self

import torch

from lowrank_ldu.decomposition import Factorization
from lowrank_ldu.diagnostics.cost import SAMPLES
from lowrank_ldu.errors import FittingError
from lowrank_ldu.fitting.factoring import BASIS_METHODS, BasisMethod
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
from lowrank_ldu.fitting.targets import target_layers
from lowrank_ldu.formatting import aligned, figure, printable
from lowrank_ldu.nn.base_identity import QUANTIZED, relative_difference, sample_of
from lowrank_ldu.validation import check_choice, shown

if TYPE_CHECKING:
    import os
    from collections.abc import Mapping
    from pathlib import Path

    from torch import Tensor, nn

FORMAT, VERSION = "lowrank-ldu basis", 1
_PARTS = ("left", "diagonal", "right", "base_sample")
BASIS_DTYPES = ("float32", "bfloat16", "float16")


class LayerBasis(NamedTuple):
    """Hold one layer's factors, and what tells its base weight.

    Attributes
    ----------
    factors : Factorization
        left (m, r), diagonal (r,), right (r, n): torch tensors of float32.
    held : float
        Share of the energy of the gradient (or of inputs and outputs) that a diagonal core can hold.
    base_sample : Tensor
        Entries of the base weight, float32.
    """

    factors: Factorization[Tensor]
    held: float
    base_sample: Tensor


class FittedBasis:
    """Hold fitted factors of a model's layers.

    Made by `fit_basis` or `load`. Any number of adapters share one basis, which its digest names.

    Attributes
    ----------
    layers : mapping of str to (int, int, int)
        (m, n, r) of each layer.
    held : mapping of str to float
        Share of the energy that a diagonal core can hold.
    source, method, dtype : str
        What it was fitted to, how it was factored, and how left and right are stored; diagonals are float32.
    digest : str
        SHA-256 of the content, as hexadecimal digits: of all numbers and their description, wherever a file has them.
    nbytes : int
        Size of the numbers: of a file, but for its header.
    """

    def __init__(self, record: dict[str, Any], tensors: Mapping[str, Tensor] | SealedFile) -> None:
        self._record, self._tensors = record, tensors
        self.source: Source = record["source"]
        self.method: BasisMethod = record["method"]
        self.dtype: str = record["dtype"]
        self.digest = digest_of(record)
        entries = record["layers"]
        ranks = {name: record["tensors"][f"{name}.diagonal"]["shape"][0] for name in entries}
        shapes = {name: (*entries[name]["shape"], ranks[name]) for name in entries}
        self.layers: Mapping[str, tuple[int, int, int]] = shapes
        self.held: Mapping[str, float] = {name: float(entries[name]["held"]) for name in entries}

    @classmethod
    def of_layers(
        cls, layers: Mapping[str, LayerBasis], *, source: Source, method: BasisMethod, dtype: str, budget: int | None
    ) -> Self:
        """Return the basis of layers that are in memory."""
        tensors: dict[str, Tensor] = {}
        entries = {}
        for name, (factors, held, sample) in sorted(layers.items()):
            left, right = (part.detach().to("cpu", getattr(torch, dtype)) for part in (factors.left, factors.right))
            parts = (left.contiguous(), factors.diagonal.float().cpu(), right.contiguous(), sample.float().cpu())
            tensors |= {f"{name}.{key}": part for key, part in zip(_PARTS, parts, strict=True)}
            entries[name] = {"shape": list(factors.shape), "held": held}
        record = {
            "format": FORMAT,
            "version": VERSION,
            "source": source,
            "method": method,
            "dtype": dtype,
            "budget": budget,
            "layers": entries,
            "tensors": described(tensors),
        }
        return cls(record, tensors)

    @property
    def nbytes(self) -> int:
        """Size of the numbers in bytes."""
        sizes = {"float32": 4, "bfloat16": 2, "float16": 2}
        entries = self._record["tensors"].values()
        return sum(sizes[entry["dtype"]] * int(torch.Size(entry["shape"]).numel()) for entry in entries)

    @property
    def rank_pattern(self) -> dict[str, int]:
        """Return the rank of each layer, as a new dict."""
        return {name: rank for name, (_, _, rank) in self.layers.items()}

    def factors(self, layer: str) -> Factorization[Tensor]:
        """Return a layer's factors, read from the file if need be.

        Parameters
        ----------
        layer : str
            One of `layers`.

        Returns
        -------
        Factorization
            left (m, r), diagonal (r,), right (r, n): torch tensors of float32 on the CPU, whatever `dtype` they are
            stored in.

        Raises
        ------
        FittingError
            There is no such layer, or the file does not hold what was written.
        """
        self._check_name(layer)
        left, diagonal, right = (self._tensor(f"{layer}.{key}").float() for key in _PARTS[:3])
        return Factorization(left, diagonal, right)

    def check(self, layer: str, matrix: Tensor) -> None:
        """Refuse a weight that is not the base of a layer's factors.

        Another rounding of the base passes, quantized ones too: of the weight 32 entries are compared.

        Parameters
        ----------
        layer : str
        matrix : Tensor, shape (m, n)

        Raises
        ------
        FittingError
            The weight has another shape, or differs by more than quantization does.
        """
        self._check_name(layer)
        m, n, _ = self.layers[layer]
        if tuple(matrix.shape) != (m, n):
            raise FittingError(
                f"layer {layer!r} has a weight of shape {tuple(matrix.shape)}; accepted: {(m, n)}, as the basis was "
                "fitted for"
            )
        difference = relative_difference(self._tensor(f"{layer}.base_sample"), sample_of(matrix))
        if not difference <= QUANTIZED:
            raise FittingError(
                f"layer {layer!r}: the weight is not the one that the basis was fitted for, from which it differs by "
                f"{figure(100 * difference)} % where it was sampled; accepted: the same base, or a rounded or "
                "quantized copy of it"
            )

    def check_base(self, model: nn.Module) -> None:
        """Refuse a model that is not the base of these factors.

        Raises
        ------
        FittingError
            A layer is missing, or its weight is another one.
        """
        there = {layer.name: layer for layer in target_layers(model, "all-linear")}
        for name in self.layers:
            if name not in there:
                raise FittingError(f"layer {name!r} of the basis is no linear layer of the model; accepted: its base")
            self.check(name, there[name].weight())

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write the basis to a file, whole or not at all.

        Parameters
        ----------
        path : path
            A file, which is replaced: safetensors, of about `nbytes`.

        Returns
        -------
        Path

        Raises
        ------
        FittingError
            It cannot be written.
        """
        file = checked_path(path)
        names = self._record["tensors"]
        write_sealed(file, {name: self._tensor(name) for name in names}, self._record)
        return file

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Self:
        """Open what `save` wrote; numbers are read when they are asked for.

        Raises
        ------
        FittingError
            There is no such file, it is no basis, or it was cut short or changed. A change of numbers is found when
            they are read.
        """
        file = SealedFile(checked_path(path), Format(FORMAT, VERSION, _check))
        return cls(file.record, file)

    def _check_name(self, layer: str) -> None:
        if layer not in self.layers:
            known = ", ".join(map(repr, list(self.layers)[:10]))
            raise FittingError(f"the basis has none of layer {shown(layer)}; accepted: {known}")

    def _tensor(self, name: str) -> Tensor:
        tensors = self._tensors
        tensor = tensors.read(name) if isinstance(tensors, SealedFile) else tensors[name]
        if not bool(tensor.isfinite().all()):
            raise FittingError(f"tensor {name!r} of the basis has entries that are not finite; accepted: finite")
        return tensor

    def __str__(self) -> str:
        rows = [("layer", "m x n", "rank", "energy held, %")]
        rows += [
            (printable(name), f"{m} x {n}", str(rank), figure(100 * self.held[name]))
            for name, (m, n, rank) in self.layers.items()
        ]
        numbers = sum(self.rank_pattern.values())
        size = f"{figure(self.nbytes / 2**20)} MiB in {self.dtype}"
        last = f"{len(self.layers)} layers, {numbers} numbers in diagonals, {self.method} of {self.source}s; {size}"
        return "\n".join([*aligned(rows), f"{last}, basis {self.digest[:16]}"])


def _check(record: dict[str, Any]) -> None:
    accepted = {"format", "version", "source", "method", "dtype", "budget", "layers", "tensors"}
    if set(record) != accepted:
        raise ValueError(f"the record has fields {sorted(record)}; accepted: {sorted(accepted)}")
    check_choice(record["source"], "source", SOURCES)
    check_choice(record["method"], "method", BASIS_METHODS)
    check_choice(record["dtype"], "dtype", BASIS_DTYPES)
    if record["budget"] is not None and type(record["budget"]) is not int:
        raise ValueError(f"budget is {shown(record['budget'])}; accepted: an integer, or None")
    check_layers(record, {"held"}, _PARTS)
    for name, entry in record["layers"].items():
        if type(entry["held"]) not in {float, int}:
            raise ValueError(f"layer {name!r} has held {shown(entry['held'])}; accepted: a number")
        m, n = entry["shape"]
        shapes = [record["tensors"][f"{name}.{key}"]["shape"] for key in _PARTS]
        rank = shapes[1][0] if len(shapes[1]) == 1 else 0
        if not 0 < rank <= min(m, n) or shapes[:3] != [[m, rank], [rank], [rank, n]]:
            raise ValueError(f"layer {name!r} has factors of shapes {shapes[:3]}; accepted: (m, r), (r,) and (r, n)")
        dtypes = [record["tensors"][f"{name}.{key}"]["dtype"] for key in _PARTS]
        accepted_dtypes = [record["dtype"], "float32", record["dtype"], "float32"]
        if dtypes != accepted_dtypes or shapes[3] != [SAMPLES]:
            raise ValueError(f"layer {name!r} has tensors of {dtypes}; accepted: {accepted_dtypes}")
