"""A base model with an adapter merged in, written shard by shard."""

from __future__ import annotations

import json
import shutil
from typing import TYPE_CHECKING

from safetensors import safe_open

from lowrank_ldu.adapters.errors import AdapterError
from lowrank_ldu.adapters.tensor_stream import Entry, entries_of, given, write_tensors
from lowrank_ldu.nn.functional import merged_weight, updated_matrix

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from torch import Tensor

    from lowrank_ldu.adapters.base_checkpoint import BaseCheckpoint
    from lowrank_ldu.adapters.file import AdapterFile, StoredLayer

# Weights in other formats beside the ones that are merged would be the unmerged model.
_OTHER_WEIGHTS = (".bin", ".pt", ".pth", ".safetensors", ".h5", ".msgpack", ".onnx", ".gguf", ".index.json")


def export_merged(
    adapter: AdapterFile,
    base: BaseCheckpoint,
    folder: Path,
    *,
    force: bool = False,
    progress: Callable[[str], None] = lambda _: None,
) -> list[str]:
    """Write the base model with the adapter's updates in its weights, summed in float32 and rounded once.

    Files keep their names and tensors their order; memory holds one tensor and its update at a time, so that a model
    larger than memory can be merged. Configuration and tokeniser files are copied.

    Parameters
    ----------
    adapter, base, force
        As for `export_lora`.
    folder : Path
        Exists.
    progress : callable
        Gets the name of each shard, when its turn comes.

    Returns
    -------
    list of str
        Names of the tensors that were merged or replaced.

    Raises
    ------
    AdapterError
        A layer is missing in the base, its weight is another one, or a merged weight is not finite in its dtype.
    """
    layers = {base.weight_of(name): layer for name, layer in adapter.layers.items()}
    modules = _module_tensors(adapter, base)
    new = {name: tensor for name, tensor in modules.items() if name not in base}
    last = list(base.files)[-1]
    for file_name in base.files:
        progress(file_name)
        entries = [_entry(entry, layers, modules, force=force) for entry in entries_of(base.root / file_name)]
        if file_name == last:
            entries += [given(name, tensor) for name, tensor in new.items()]
        write_tensors(folder / file_name, entries, _metadata(base.root / file_name))
    if base.index is not None:
        _write_index(base.index, folder, dict.fromkeys(new, last), sum(tensor.nbytes for tensor in new.values()))
    # Of a folder, everything else belongs to the model; beside a single file lies anything.
    if base.path.is_dir():
        for file in base.root.iterdir():
            if file.is_file() and not file.name.endswith(_OTHER_WEIGHTS):
                shutil.copy2(file, folder / file.name)
    return sorted({*layers, *modules})


def _module_tensors(adapter: AdapterFile, base: BaseCheckpoint) -> dict[str, Tensor]:
    """Name the tensors of modules that were trained whole as the base does; a new head has no name there yet."""
    named = {}
    for name, tensor in adapter.module_tensors.items():
        try:
            named[base.name_of(name, "module")] = tensor
        except AdapterError:
            named[name] = tensor
    return named


def _entry(entry: Entry, layers: dict[str, StoredLayer], modules: dict[str, Tensor], *, force: bool) -> Entry:
    if entry.name in modules:
        return given(entry.name, modules[entry.name])
    if entry.name not in layers:
        return entry
    layer = layers[entry.name]

    def merged() -> Tensor:
        weight = entry.read()
        diagonal = layer.bind(layer.kind.as_matrix(weight), force=force)
        try:
            return merged_weight(weight, layer.kind, [updated_matrix(diagonal.factors, diagonal.delta.detach())])
        except OverflowError as error:
            raise AdapterError(f"layer {layer.name!r}: {error}") from error

    return Entry(entry.name, entry.dtype, entry.shape, merged)


def _metadata(path: Path) -> dict[str, str] | None:
    with safe_open(path, framework="pt") as file:
        metadata: dict[str, str] | None = file.metadata()
        return metadata


def _write_index(index: Path, folder: Path, added: dict[str, str], size: int) -> None:
    content = json.loads(index.read_bytes())
    content["weight_map"].update(added)
    if isinstance(content.get("metadata"), dict) and isinstance(content["metadata"].get("total_size"), int):
        content["metadata"]["total_size"] += size
    (folder / index.name).write_text(json.dumps(content, indent=2))
