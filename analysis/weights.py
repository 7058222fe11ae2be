"""The weights of a checkpoint: its tensors, with what is stored as one and used as several taken apart."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lowrank_ldu.analysis.float8 import dequantised, scale_of
from lowrank_ldu.analysis.parts import Part, parts_of, transposed_names
from lowrank_ldu.analysis.readers import CheckpointReader, TensorInfo, open_checkpoint

if TYPE_CHECKING:
    import os

    import torch


class WeightsReader(CheckpointReader):
    """Reader of the matrices that a model uses: experts, queries, keys and values one by one, float8 with its scales.

    Every tensor of the file is read once if its parts are loaded one after another.

    Parameters
    ----------
    reader : CheckpointReader
        Of the tensors as they are stored; closed with this one.

    Notes
    -----
    The rules of `parts_of`, `transposed_names` and `scale_of`.
    """

    def __init__(self, reader: CheckpointReader) -> None:
        self._reader = reader
        infos = {info.name: info for info in reader.tensors}
        self._scales = {name: scale for name, info in infos.items() if (scale := scale_of(info, infos)) is not None}
        turned = transposed_names(reader.tensors)
        self._parts: dict[str, Part] = {}
        scales = set(self._scales.values())
        for info in reader.tensors:
            if info.name in scales:
                continue
            for part in parts_of(info, transposed=info.name in turned, scaled=info.name in self._scales):
                # Whoever calls a tensor like another one's part keeps the name.
                if part.info.name != info.name and part.info.name in infos:
                    part = Part(info, info.name)  # noqa: PLW2901  # as it is stored
                if part.info.name not in self._parts:
                    self._parts[part.info.name] = part
        self._held: tuple[str, torch.Tensor] | None = None
        ignored = reader.ignored | {scale: f"scale of {name!r}" for name, scale in self._scales.items()}
        super().__init__(reader.path, (part.info for part in self._parts.values()), ignored)

    def _read(self, info: TensorInfo) -> torch.Tensor:
        part = self._parts[info.name]
        if part.take is None:
            return self._whole(part.source)
        if self._held is None or self._held[0] != part.source:
            self._held = None  # before the next one is read
            self._held = part.source, self._whole(part.source)
        values = part.take(self._held[1])
        if part.last:
            self._held = None
        return values

    def _whole(self, name: str) -> torch.Tensor:
        values = self._reader.load(name)
        scale = self._scales.get(name)
        return values if scale is None else dequantised(values, self._reader.load(scale))

    def close(self) -> None:
        """Close the reader of the stored tensors."""
        super().close()
        self._held = None
        self._reader.close()


def open_weights(path: str | os.PathLike[str]) -> WeightsReader:
    """Open a checkpoint, whatever its format, for the matrices in it.

    Parameters
    ----------
    path : str or os.PathLike
        As for `open_checkpoint`.

    Raises
    ------
    CheckpointError
        As for `open_checkpoint`.

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
    return WeightsReader(open_checkpoint(path))
