"""Export the updates as dense matrices.

They are for tools that add or compare weights.
"""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING

import torch

from lowrank_ldu.adapters.exports.base import BaseModel
from lowrank_ldu.adapters.exports.naming import names_in_base
from lowrank_ldu.adapters.exports.output import checked_export, export_folder
from lowrank_ldu.adapters.exports.updates import base_weight, bound, bound_again, check_update, is_of_base
from lowrank_ldu.checkpoints.formats.safetensors_file import SafetensorsReader
from lowrank_ldu.checkpoints.writer import computed, write_tensors
from lowrank_ldu.errors import AdapterError
from lowrank_ldu.nn.base_identity import warn_of
from lowrank_ldu.nn.update import update_pair, updated_matrix

if TYPE_CHECKING:
    import os
    from collections.abc import Callable

    from torch import Tensor

    from lowrank_ldu.adapters.stored_layer import AdapterFile, StoredLayer
    from lowrank_ldu.checkpoints import CheckpointReader
    from lowrank_ldu.nn.base_identity import Deviation
    from lowrank_ldu.nn.basis import FittedBasis

DELTA_WEIGHTS = "delta.safetensors"


def export_delta(
    adapter: AdapterFile,
    base: CheckpointReader,
    folder: str | os.PathLike[str],
    *,
    overwrite: bool = False,
    accept_other_base: bool = False,
    basis: FittedBasis | str | os.PathLike[str] | None = None,
    progress: Callable[[str], None] = lambda _: None,
) -> list[str]:
    """Write each layer's update as a dense matrix.

    It has the layout of the layer's weight, float32, and the weight's name in the base.

    Parameters
    ----------
    adapter, base, folder, overwrite, accept_other_base, basis, progress
        As for `export_lora`; the folder gets `delta.safetensors`. One update is in memory at a time.

    Returns
    -------
    list of str
        Names of the tensors.

    Raises
    ------
    TypeError
        An argument is of another type than it should be.
    AdapterError
        A layer is missing in the base, or its weight is another one; an update is not finite in float32; what was
        written is not the update.
    OutputError
        The folder cannot be written.

    Warns
    -----
    UserWarning
        Modules were trained whole, which are not in the file.
    """
    target = checked_export(
        adapter, base, folder, progress, basis, overwrite=overwrite, accept_other_base=accept_other_base
    )
    model = BaseModel(base)
    names = names_in_base(adapter, model)
    places = names.layers
    shapes = {
        name: tuple(base_weight(adapter, adapter.layers[name], model, str(place.read)).shape)
        for name, place in places.items()
    }

    passed: list[Deviation] = []

    def reader(layer: StoredLayer) -> Callable[[], Tensor]:
        def read() -> Tensor:
            progress(layer.name)
            weight, held = bound(
                adapter, layer, model, str(places[layer.name].read), passed, accept_other_base=accept_other_base
            )
            update = updated_matrix(held.factors, held.delta.detach()).float()
            if not bool(update.isfinite().all()):
                raise AdapterError(f"layer {layer.name!r}: the update overflows float32; accepted: a smaller one")
            return layer.kind.as_weight(update, weight)

        return read

    writes = {name: (places[name].write, *names.shared.get(name, ())) for name in adapter.layers}
    entries = [
        computed(write, torch.float32, shapes[name], reader(layer))
        for name, layer in adapter.layers.items()
        for write in writes[name]
    ]
    with export_folder(adapter, model, target, {DELTA_WEIGHTS}, overwrite=overwrite) as out:
        write_tensors(out / DELTA_WEIGHTS, entries, {"format": "pt"})
        written = SafetensorsReader(out / DELTA_WEIGHTS)
        present = {info.name for info in written.tensors}
        for name, layer in adapter.layers.items():
            _, held = bound_again(adapter, layer, model, str(places[name].read))
            pair = update_pair(held.factors, held.delta.detach())
            for write in writes[name]:
                if write not in present:
                    raise AdapterError(f"export failed its check: tensor {write!r} is missing")
                update = layer.kind.as_matrix(written.load(write))
                check_update(update, pair, write)
    warn_of(passed)
    others = [
        name
        for name, tensor in adapter.module_tensors.items()
        if not is_of_base(tensor, model, names.modules[name].read)
    ]
    if others:
        more = f" and {len(others) - 1} more, which were" if len(others) > 1 else ", which was"
        warnings.warn(
            f"{DELTA_WEIGHTS} holds the updates of layers alone, and not {others[0]!r}{more} trained whole",
            UserWarning,
            stacklevel=2,
        )
    return [entry.name for entry in entries]
