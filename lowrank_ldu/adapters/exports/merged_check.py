"""Compare a written merged model with its base and its adapter.

This is done before the export counts as whole.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from lowrank_ldu.adapters.exports.architecture import architecture_of
from lowrank_ldu.adapters.exports.updates import bound_again, product_error, row_blocks
from lowrank_ldu.checkpoints.formats.safetensors_file import SafetensorsReader
from lowrank_ldu.checkpoints.safe_reading import read_json
from lowrank_ldu.checkpoints.writer import given, same_bytes, stored
from lowrank_ldu.errors import AdapterError
from lowrank_ldu.nn.update import update_pair
from lowrank_ldu.untrusted import LISTING

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from torch import Tensor

    from lowrank_ldu.adapters.exports.base import BaseModel
    from lowrank_ldu.adapters.exports.merged import MergePlan
    from lowrank_ldu.adapters.stored_layer import AdapterFile
    from lowrank_ldu.checkpoints.writer import Entry


def check_merged(adapter: AdapterFile, base: BaseModel, plan: MergePlan, folder: Path) -> None:
    """Read the written files, and check every tensor.

    Tensors of adapted layers are compared with the sum of the base's weight and the product of the update's two thin
    factors, which is another way than they were computed. All others are compared byte for byte.

    Parameters
    ----------
    adapter : AdapterFile
    base : BaseModel
    plan : MergePlan
    folder : Path
        Has the files of the base, merged.

    Raises
    ------
    AdapterError
        Naming the tensor.
    """
    written: dict[str, Entry] = {}
    places: dict[str, SafetensorsReader] = {}
    for file in base.files:
        reader = SafetensorsReader(folder / file)
        for info in reader.tensors:
            if info.name in written:
                raise AdapterError(f"export failed its check: tensor {info.name!r} was written twice")
            written[info.name], places[info.name] = stored(reader, info.name), reader
    _same_names(set(written), {*base, *plan})
    if base.index is not None:
        index = read_json(folder / base.index.name, "JSON index", LISTING)
        _same_names(set(index["weight_map"]), set(written))
    for name, entry in written.items():
        if name in plan.layers:
            _check_sum(adapter, base, plan, name, places[name].load(name))
            continue
        copied = name not in plan.tensors
        expected = base.entry(plan.copies.get(name, name)) if copied else given(name, plan.tensors[name])
        if not same_bytes(entry, expected):
            raise AdapterError(f"export failed its check: tensor {name!r} is not what was to be written")
    _check_model(plan, written, folder, _never_stored(base) if plan.copies else set())


def _same_names(found: Iterable[str], wanted: Iterable[str]) -> None:
    different = sorted(set(found) ^ set(wanted))
    if different:
        raise AdapterError(f"export failed its check: tensor {different[0]!r} is missing, or is one too many")


def _check_sum(adapter: AdapterFile, base: BaseModel, plan: MergePlan, name: str, merged: Tensor) -> None:
    layer, read = plan.layers[name]
    weight, held = bound_again(adapter, layer, base, read)
    left, right = update_pair(held.factors, held.delta.detach())
    W, M = layer.kind.as_matrix(weight), layer.kind.as_matrix(merged)
    # Half a unit of the stored dtype, and the rounding of a sum of r + 2 terms in the dtype that it was summed in.
    stored, summed = torch.finfo(merged.dtype), torch.finfo(torch.promote_types(left.dtype, W.dtype))
    relative, terms = (right.shape[0] + 2) * summed.eps, right.double()
    if M.shape != W.shape or merged.dtype != base.dtype(read):
        raise AdapterError(f"export failed its check: tensor {name!r} has another shape or dtype than its base")
    for rows in row_blocks(*W.shape):
        exact = W[rows].double() + left[rows].double() @ terms
        allowed = stored.eps * exact.abs() + stored.tiny * stored.eps
        allowed += relative * (product_error(left[rows], right) + W[rows].double().abs())
        if not bool(((M[rows].double() - exact).abs() <= allowed).all()):
            raise AdapterError(f"export failed its check: tensor {name!r} is not the base's plus the update")


def _never_stored(base: BaseModel) -> set[str]:
    """Return the tensors that the base's model computes itself.

    Positions are one example.
    """
    architecture = base.architecture
    if architecture is None:
        return set()
    present = {architecture.module_name(name) for name in base}
    return set(architecture.shapes) - present - set(architecture.tied)


def _check_model(plan: MergePlan, written: dict[str, Entry], folder: Path, never_stored: set[str]) -> None:
    """Compare changed tensors with the model of the written configuration.

    This needs a model that transformers knows.
    """
    architecture = architecture_of(folder, len(written))
    if architecture is None:
        return
    by_module = {architecture.module_name(name): entry for name, entry in written.items()}
    if plan.copies:
        absent = sorted(set(architecture.shapes) - set(by_module) - set(architecture.tied) - never_stored)
        if absent and None not in by_module:
            raise AdapterError(
                f"export failed its check: {architecture.class_name} has {absent[0]!r}, which is tied to nothing any "
                "more, and is in no file"
            )
    # All tensors are checked if the configuration is another one than the base's.
    for name in written if plan.config is not None else plan:
        module_name, shape = architecture.module_name(name), written[name].shape
        wanted = None if module_name is None else architecture.shapes.get(module_name)
        if wanted is None:
            continue
        if wanted != shape and name not in plan.tensors and name not in plan.layers:
            raise AdapterError(
                f"tensor {name!r} has shape {shape} in the base, and {wanted} with the adapter, which does not hold "
                "it; accepted: an adapter with this module in modules_to_save, too, or a base that was saved after "
                "its vocabulary was resized"
            )
        if wanted != shape:
            raise AdapterError(
                f"tensor {name!r} has shape {shape}, and {wanted} in the {architecture.class_name} that its "
                "config.json describes; accepted: an adapter of this model"
            )
        source = by_module.get(architecture.tied.get(str(module_name)))
        if module_name in architecture.tied and (source is None or not same_bytes(written[name], source)):
            raise AdapterError(
                f"tensor {name!r} stays tied to {architecture.tied[module_name]!r}, which {architecture.class_name} "
                "cannot undo; accepted: an adapter of other layers"
            )
