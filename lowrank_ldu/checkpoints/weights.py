"""Read the weights of a checkpoint as matrices.

Several of them may be stored as one tensor, which is taken apart.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from lowrank_ldu.checkpoints.model_config import ModelConfigs
from lowrank_ldu.checkpoints.opening import open_checkpoint
from lowrank_ldu.checkpoints.parts import Part, parts_of, transposed_names, undecided_names
from lowrank_ldu.checkpoints.quantized import find_quantized
from lowrank_ldu.checkpoints.quantized.weight import QuantizedWeight, Stored
from lowrank_ldu.checkpoints.reader import CheckpointReader, TensorInfo, UpdatesReader
from lowrank_ldu.errors import CheckpointError

if TYPE_CHECKING:
    import os
    from collections.abc import Callable, Iterator

    import torch

    from lowrank_ldu.checkpoints.model_config import ModelConfig


@dataclass(frozen=True)
class _Source:
    """Hold a part and the stored tensors that it is of."""

    part: Part
    stored: QuantizedWeight

    def shares_tensors(self, other: _Source | None) -> bool:
        return other is not None and other.stored is self.stored

    def shares_matrix(self, other: _Source | None) -> bool:
        return self.shares_tensors(other) and other is not None and other.part.row == self.part.row


class WeightsReader(CheckpointReader):
    """Reader of the matrices that a model uses.

    Experts, queries, keys and values come one by one, and dequantized.

    Every tensor of the file is read once if its parts are loaded one after another; of a stack of quantized matrices
    one is dequantized at a time. Texts of a few bytes that say the shape of quantized weights are read at once.

    Parameters
    ----------
    reader : CheckpointReader
        Of the tensors as they are stored; closed with this one.
    config_of : callable, optional
        From a tensor to its model's configuration; what is in the file's folder if not given.

    Attributes
    ----------
    undecided : set of str
        Weights of which nothing here tells whether they are stored as (in, out).
    updates : UpdatesReader or None
        The reader that was given, where it makes updates from the weights that they are of.

    Notes
    -----
    The rules of `parts_of`, `transposed_names` and `find_quantized`.
    """

    def __init__(self, reader: CheckpointReader, config_of: Callable[[TensorInfo], ModelConfig] | None = None) -> None:
        self._reader = reader
        self.holds_updates = reader.holds_updates
        self.updates = reader if isinstance(reader, UpdatesReader) else None
        self.other_files = reader.other_files
        config_of = config_of or ModelConfigs(reader).of
        stored = Stored(reader, config_of)
        quantized = find_quantized(stored)
        roles = {
            name: f"{role} of {found.info.name!r}"
            for main, found in quantized.items()
            for role, name in found.roles.items()
            if name != found.info.name
        }
        listed = [
            quantized.get(info.name, QuantizedWeight(info, {"": info.name}))
            for info in reader.tensors
            if info.name in quantized or info.name not in roles
        ]
        self.undecided = undecided_names(found.info for found in listed)
        turned = transposed_names(found.info for found in listed)
        self._sources: dict[str, _Source] = {}
        for found in listed:
            parts = parts_of(found.info, config_of(found.info), transposed=found.info.name in turned)
            for source in _sources(found, parts, stored):
                self._sources.setdefault(source.part.info.name, source)
        # The next weight, if they are loaded in order: the tensors that it needs are kept.
        names = list(self._sources)
        self._next = dict(zip(names, [self._sources[name] for name in names[1:]], strict=False))
        self._tensors: tuple[_Source, dict[str, torch.Tensor]] | None = None
        self._matrix: tuple[_Source, torch.Tensor] | None = None
        ignored = reader.ignored | {name: what for name, what in roles.items() if name not in self._sources}
        infos = [
            source.part.info
            if source.part.info.name == source.stored.info.name
            else replace(source.part.info, part_of=source.stored.info.name)
            for source in self._sources.values()
        ]
        super().__init__(reader.path, infos, ignored)

    def _read(self, info: TensorInfo) -> torch.Tensor:
        # What is stored as it is listed can be read, if it is no weight.
        if info.reason and not self._reader.info(self._sources[info.name].stored.info.name).reason:
            raise CheckpointError(f"{self.path}: {info.name!r} cannot be dequantized: {info.reason}")
        source = self._sources[info.name]
        following = self._next.get(info.name)
        held, self._matrix = self._matrix, None
        if held is not None and source.shares_matrix(held[0]):
            matrix = held[1]
        else:
            held = None  # before the next one is read
            matrix = self._load_matrix(source, following)
        if source.shares_matrix(following):
            self._matrix = source, matrix
        return matrix if source.part.take is None else source.part.take(matrix)

    def _load_matrix(self, source: _Source, following: _Source | None) -> torch.Tensor:
        """Return what a part is taken from."""
        tensors = self._load_tensors(source, following)
        if source.part.row is not None:
            tensors = {role: values[source.part.row] for role, values in tensors.items()}
        if source.stored.dequantize is None:
            return tensors[""]
        try:
            return source.stored.dequantize(**tensors)
        except CheckpointError as error:
            raise CheckpointError(f"{self.path}: {source.part.info.name!r} cannot be dequantized: {error}") from error

    def _load_tensors(self, source: _Source, following: _Source | None) -> dict[str, torch.Tensor]:
        """Return the stored tensors of a matrix.

        They are kept if there is another matrix in them.
        """
        held, self._tensors = self._tensors, None
        if held is not None and source.shares_tensors(held[0]):
            tensors = held[1]
        else:
            held = None
            tensors = {role: self._reader.load(name) for role, name in source.stored.roles.items()}
        if source.part.row is not None and source.shares_tensors(following):
            self._tensors = source, tensors
        return tensors

    def whole_of(self, name: str) -> TensorInfo | None:
        """Return the matrix that a weight is some outputs of.

        None if it is a matrix of its own. `order` says how the matrix is stored.
        """
        source = self._sources[name]
        if source.part.take is None or source.part.row is not None:
            return None
        return replace(source.stored.info, order=source.part.info.order)

    def load_whole(self, name: str) -> torch.Tensor:
        """Read the matrix that a weight is some outputs of, by `whole_of`, as it is stored, and dequantized."""
        self.info(name)
        return self._load_matrix(self._sources[name], None)

    def part_of_update(self, name: str, update: torch.Tensor) -> torch.Tensor:
        """Return the part of an update that is a weight's own.

        Parameters
        ----------
        name : str
            Of a weight that is some outputs of a matrix, by `whole_of`.
        update : torch.Tensor, shape (out, in)
            Of that matrix.

        Returns
        -------
        torch.Tensor
            In the order in which the weight is stored.
        """
        part = self._sources[name].part
        assert part.take is not None  # noqa: S101  # others have no whole
        return part.take(update.permute(part.info.order) if part.info.order else update)

    def close(self) -> None:
        """Close the reader of the stored tensors."""
        super().close()
        self._tensors = self._matrix = None
        self._reader.close()


def _sources(found: QuantizedWeight, parts: list[Part], stored: Stored) -> Iterator[_Source]:
    own = list(found.roles.values())
    if any(part.info.name in stored.tensors and part.info.name not in own for part in parts):
        # Another tensor already has the name of this one's part: this one is listed as it is stored.
        info = stored.tensors[own[0]]
        yield _Source(Part(info), QuantizedWeight(info, {"": info.name}))
        return
    for part in parts:
        yield _Source(part, found)


def open_weights(path: str | os.PathLike[str]) -> WeightsReader:
    """Open a checkpoint, whatever its format, for the matrices in it.

    Parameters
    ----------
    path : str or os.PathLike
        As for `open_checkpoint`.

    Raises
    ------
    CheckpointError
        As for `open_checkpoint`; or it holds an adapter whose tensors are neither weights nor updates of them.

    Examples
    --------
    >>> import tempfile
    >>> from pathlib import Path
    >>> import torch
    >>> from safetensors.torch import save_file
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     file = Path(folder, "model.safetensors")
    ...     save_file({"mlp.experts.down_proj": torch.ones(2, 3, 4), "attn.in_proj_weight": torch.ones(9, 3)}, file)
    ...     with open_weights(file) as weights:
    ...         for info in weights.tensors:
    ...             print(info.name, info.shape)
    attn.in_proj_weight[q] (3, 3)
    attn.in_proj_weight[k] (3, 3)
    attn.in_proj_weight[v] (3, 3)
    mlp.experts.down_proj[0] (3, 4)
    mlp.experts.down_proj[1] (3, 4)
    """
    reader = open_checkpoint(path)
    if reader.no_weights:
        reader.close()
        raise CheckpointError(f"{reader.path}: {reader.no_weights}")
    return WeightsReader(reader)
