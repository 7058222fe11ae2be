"""The updates themselves, as dense matrices: for tools that add or compare weights."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from lowrank_ldu.adapters.tensor_stream import Entry, write_tensors
from lowrank_ldu.nn.functional import updated_matrix

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from torch import Tensor

    from lowrank_ldu.adapters.base_checkpoint import BaseCheckpoint
    from lowrank_ldu.adapters.file import AdapterFile, StoredLayer

DELTA_WEIGHTS = "delta.safetensors"


def export_delta(
    adapter: AdapterFile,
    base: BaseCheckpoint,
    folder: Path,
    *,
    force: bool = False,
    progress: Callable[[str], None] = lambda _: None,
) -> list[str]:
    """Write each layer's update in the layout of its weight, float32, under the weight's name in the base.

    Parameters
    ----------
    adapter, base, folder, force, progress
        As for `export_lora`; the folder gets `delta.safetensors`. One update is in memory at a time.

    Returns
    -------
    list of str
        Names of the tensors.

    Raises
    ------
    AdapterError
        A layer is missing in the base, or its weight is another one.
    """
    entries = []
    for name, layer in adapter.layers.items():
        weight_name = base.weight_of(name)
        shape = base.shape(weight_name)
        entries.append(
            Entry(weight_name, torch.float32, shape, _reader(layer, base, weight_name, progress, force=force))
        )
    write_tensors(folder / DELTA_WEIGHTS, entries, {"format": "pt"})
    return [entry.name for entry in entries]


def _reader(
    layer: StoredLayer, base: BaseCheckpoint, weight_name: str, progress: Callable[[str], None], *, force: bool
) -> Callable[[], Tensor]:
    def read() -> Tensor:
        progress(layer.name)
        weight = base.tensor(weight_name)
        diagonal = layer.bind(layer.kind.as_matrix(weight), force=force)
        return layer.kind.as_weight(updated_matrix(diagonal.factors, diagonal.delta.detach()).float(), weight)

    return read
