"""Export a base model with an adapter merged in.

It is written shard by shard.
"""

from __future__ import annotations

import json
import warnings
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import torch

from lowrank_ldu.adapters.exports import configuration
from lowrank_ldu.adapters.exports.architecture import CONFIG, architecture_of, read_config
from lowrank_ldu.adapters.exports.base import BaseModel
from lowrank_ldu.adapters.exports.merged_check import check_merged
from lowrank_ldu.adapters.exports.model_files import copy_files, further_modules, other_files, refuse_left_over
from lowrank_ldu.adapters.exports.naming import names_in_base
from lowrank_ldu.adapters.exports.output import checked_export, export_folder
from lowrank_ldu.adapters.exports.tied_weights import separate
from lowrank_ldu.adapters.exports.updates import base_weight, bound, check_module_tensor
from lowrank_ldu.checkpoints.safe_reading import read_json
from lowrank_ldu.checkpoints.writer import Entry, computed, given, write_tensors
from lowrank_ldu.errors import AdapterError
from lowrank_ldu.nn.base_identity import warn_of
from lowrank_ldu.nn.update import merged_weight, updated_matrix
from lowrank_ldu.untrusted import LISTING
from lowrank_ldu.validation import dtype_name

if TYPE_CHECKING:
    import os
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from torch import Tensor

    from lowrank_ldu.adapters.exports.naming import BaseNames, Place
    from lowrank_ldu.adapters.stored_layer import AdapterFile, StoredLayer
    from lowrank_ldu.checkpoints import CheckpointReader
    from lowrank_ldu.nn.base_identity import Deviation
    from lowrank_ldu.nn.basis import FittedBasis


_FLOATING = ("float", "bfloat", "F")


@dataclass
class MergePlan:
    """Hold the changed tensors of a merge.

    They differ between the base and its merge.

    Attributes
    ----------
    layers : dict of str to tuple of StoredLayer and str
        Tensors to be written with an update: the layer, and the tensor of the base that its weight is.
    tensors : dict of str to Tensor
        Tensors that were trained whole.
    copies : dict of str to str
        Tensors that get the bytes of another one of the base, which they were tied to.
    config : dict or None
        Of the merged model, if it is another one than the base's.
    """

    layers: dict[str, tuple[StoredLayer, str]] = field(default_factory=dict)
    tensors: dict[str, Tensor] = field(default_factory=dict)
    copies: dict[str, str] = field(default_factory=dict)
    config: dict[str, Any] | None = None

    def __contains__(self, name: object) -> bool:
        return name in self.layers or name in self.tensors or name in self.copies

    def __iter__(self) -> Iterator[str]:
        yield from {**self.layers, **self.tensors, **self.copies}


def export_merged(
    adapter: AdapterFile,
    base: CheckpointReader,
    folder: str | os.PathLike[str],
    *,
    overwrite: bool = False,
    accept_other_base: bool = False,
    basis: FittedBasis | str | os.PathLike[str] | None = None,
    keep_module_dtype: bool = False,
    progress: Callable[[str], None] = lambda _: None,
) -> list[str]:
    """Write the base model with the updates in its weights.

    Weight and update are summed in float32 and rounded once. Files keep their names and tensors their order. Memory
    holds one tensor and its update at a time, so that a model larger than memory can be merged. Configuration and
    tokenizer files are copied. The written files are read again and compared with base and adapter before they get
    their names.

    Parameters
    ----------
    adapter, base, folder, overwrite, accept_other_base, basis
        As for `export_lora`.
    keep_module_dtype : bool
        Write modules that were trained whole as they are, not in the dtype that the base has them in.
    progress : callable
        Gets the name of each shard, when its turn comes.

    Returns
    -------
    list of str
        Names of the tensors that were merged or replaced.

    Raises
    ------
    TypeError
        An argument is of another type than it should be.
    AdapterError
        A layer is missing in the base, its weight is another one, or a merged weight is not finite in its dtype. A
        tensor has a shape that config.json cannot say, or is tied to another one and config.json cannot say that it no
        longer is. What was written is not what was meant.
    OutputError
        The folder cannot be written.

    Warns
    -----
    UserWarning
        The base has names without a prefix, and tensors that are not in it have theirs.
    """
    flags = {"overwrite": overwrite, "accept_other_base": accept_other_base, "keep_module_dtype": keep_module_dtype}
    target = checked_export(adapter, base, folder, progress, basis, **flags)
    model = BaseModel(base)
    plan = _plan(adapter, model, names_in_base(adapter, model), keep_module_dtype=keep_module_dtype)
    # In a folder everything else belongs to the model; beside a single file there may be anything.
    others = other_files(model, adapter, target) if model.path.is_dir() else {}
    index = set() if model.index is None else {model.index.name}
    if model.path.is_dir():
        refuse_left_over(target, {*model.files, *index, *map(str, others)})
    with export_folder(adapter, model, target, {*model.files, *index}, overwrite=overwrite) as out:
        passed = _write(adapter, model, plan, out, accept_other_base=accept_other_base, progress=progress)
        copy_files(others, out)
        if plan.config is not None:
            (out / CONFIG).write_text(json.dumps(plan.config, indent=2), encoding="utf-8")
        check_merged(adapter, model, plan, out)
    warn_of(passed)
    return sorted({*plan.layers, *plan.tensors})


def _plan(adapter: AdapterFile, base: BaseModel, names: BaseNames, *, keep_module_dtype: bool) -> MergePlan:
    plan = MergePlan()
    for name, place in names.layers.items():
        plan.layers[place.write] = (adapter.layers[name], str(place.read))
        plan.layers |= {other: (adapter.layers[name], other) for other in names.shared.get(name, ())}
    apart = further_modules(base.root)
    for name, place in names.modules.items():
        if apart and place.read is None:
            raise AdapterError(
                f"module tensor {name!r} is not in {base.path}, whose further modules have folders of their own "
                f"({', '.join(sorted(apart))}); accepted: an adapter of the transformer alone, and other modules as "
                "sentence-transformers saves them"
            )
        plan.tensors[place.write] = _module_tensor(adapter.module_tensors[name], name, place, base, keep_module_dtype)
    _warn_of_names(names, base)
    separate(plan, base, names)
    _describe(plan, adapter, base)
    _refuse_incomplete(plan, adapter, base)
    return plan


def _warn_of_names(names: BaseNames, base: BaseModel) -> None:
    # transformers finds both kinds of names as it loads a model that it knows.
    stripped = [rule.strip for rule in names.rules if rule.strip]
    new = [name for name, place in names.modules.items() if place.read is None and place.write == name]
    if stripped and new and base.architecture is None:
        warnings.warn(
            f"the base has its tensors without the prefix {stripped[0]!r} of the adapted model; what is new "
            f"({new[0]!r}, {len(new)} tensors in all) is written under the name that it has in the adapted model",
            UserWarning,
            stacklevel=4,
        )


def _module_tensor(tensor: Tensor, name: str, place: Place, base: BaseModel, keep: bool) -> Tensor:
    """Return a wholly trained tensor in the base's dtype.

    That is the dtype of the base's tensor. For a new tensor it is the dtype of the base's floating numbers.
    """
    if place.read is not None:
        dtype = base.dtype(place.read)
        if dtype.is_floating_point != tensor.is_floating_point() or dtype.itemsize == 1 < tensor.dtype.itemsize:
            raise AdapterError(
                f"module tensor {name!r} is {dtype_name(tensor)}, and {str(dtype).removeprefix('torch.')} in the base; "
                "accepted: the base that the adapter is of, not a quantized copy"
            )
    else:
        # Names of types that torch does not have begin like this, too.
        floating = {name for name in {base.info(other).dtype for other in base} if name.startswith(_FLOATING)}
        dtype = getattr(torch, floating.pop(), tensor.dtype) if len(floating) == 1 else tensor.dtype
    if keep or not tensor.is_floating_point():
        return check_module_tensor(tensor, name)
    return _finite(tensor.to(dtype), f"module tensor {name!r}", "or its own dtype kept")


def _finite(tensor: Tensor, what: str, otherwise: str) -> Tensor:
    if not bool(tensor.isfinite().all()):
        raise AdapterError(f"{what} overflows {dtype_name(tensor)}, the base's; accepted: smaller numbers, {otherwise}")
    return tensor


def _describe(plan: MergePlan, adapter: AdapterFile, base: BaseModel) -> None:
    """Write new numbers of tokens or labels into the configuration.

    Other changes of shape are refused.
    """
    config = plan.config or read_config(base.root)
    if config is None:
        return
    tokens, changed = configuration.vocabulary(config), {}
    for name, (old, shape) in _changed_shapes(plan, adapter, base).items():
        if tokens is None or old[:1] != (tokens,) or old[1:] != shape[1:]:
            changed[name] = (old, shape)
            continue
        config = configuration.with_vocabulary(config, shape[0])
    new_tokens = configuration.vocabulary(config)
    # A model that transformers knows is compared as a whole when it is written.
    if tokens != new_tokens and base.architecture is None:
        left = [name for name in base if base.shape(name)[:1] == (tokens,) and name not in plan]
        if left:
            raise AdapterError(
                f"the adapter has {new_tokens} tokens and the base {tokens}, and {left[0]!r} of the base is not in "
                "the adapter; accepted: an adapter with all tensors that have a row for each token"
            )
    labels = configuration.labels_of(
        {name: tuple(tensor.shape) for name, tensor in plan.tensors.items()}, adapter.task_type
    )
    if labels is not None:
        config = configuration.with_labels(config, labels)
    if changed and labels is None:
        name, (old, shape) = next(iter(changed.items()))
        raise AdapterError(
            f"tensor {name!r} has shape {shape} in the adapter and {old} in the base, which {CONFIG} cannot say; "
            "accepted: the shape of the base, more or fewer tokens, or labels of a classifier"
        )
    if config != read_config(base.root):
        if not base.path.is_dir():
            raise AdapterError(
                f"{base.path}: its {CONFIG} has to be changed with it; accepted: the folder of the base model"
            )
        plan.config = config


def _refuse_incomplete(plan: MergePlan, adapter: AdapterFile, base: BaseModel) -> None:
    """Refuse a model for another task with tensors that are missing.

    The task is another one than the base's, and neither base nor adapter has these tensors.
    """
    whole = adapter.module_tensors
    if base.architecture is None or adapter.task_type is None or not whole:
        return
    adapted = architecture_of(base.root, len(base), adapter.task_type)
    # The adapter may also be of a class that transformers does not know.
    if adapted is None or not set(whole) <= set(adapted.shapes):
        return
    present = {adapted.module_name(name) for name in {*base, *plan}} | set(whole) | set(adapted.tied)
    absent = sorted(set(adapted.shapes) - set(base.architecture.shapes) - present)
    if absent and None not in present:
        raise AdapterError(
            f"{adapted.class_name}, which the adapter is of, has {absent[0]!r}, and neither the base nor the adapter "
            "has it: it would be drawn at random; accepted: the base saved as this class before it was adapted, or an "
            "adapter with this module in modules_to_save"
        )


def _changed_shapes(
    plan: MergePlan, adapter: AdapterFile, base: BaseModel
) -> dict[str, tuple[tuple[int, ...], tuple[int, ...]]]:
    """Return the old and the new shape of every reshaped tensor.

    The old one is the shape in the base.
    """
    shapes = {name: (base.shape(name), tuple(tensor.shape)) for name, tensor in plan.tensors.items() if name in base}
    for name, (layer, read) in plan.layers.items():
        if layer.name in adapter.base_weights:
            shapes[name] = (base.shape(read), tuple(base_weight(adapter, layer, base, read).shape))
    return {name: (old, new) for name, (old, new) in shapes.items() if old != new}


def _write(
    adapter: AdapterFile,
    base: BaseModel,
    plan: MergePlan,
    out: Path,
    *,
    accept_other_base: bool,
    progress: Callable[[str], None],
) -> list[Deviation]:
    """Write the weights, and return the accepted deviations.

    `accept_other_base` has let them pass.
    """
    passed: list[Deviation] = []
    added = [name for name in plan if name not in base]
    last, size = list(base.files)[-1], 0
    for file, reader in base.files.items():
        progress(file)
        names = [*(info.name for info in reader.tensors), *(added if file == last else [])]
        entries = [_entry(name, adapter, base, plan, passed, accept_other_base=accept_other_base) for name in names]
        (out / file).parent.mkdir(parents=True, exist_ok=True)
        write_tensors(out / file, entries, reader.metadata)
        size += sum(entry.size for entry in entries)
    if base.index is not None:
        _write_index(base.index, out, dict.fromkeys(added, last), size)
    return passed


def _entry(
    name: str,
    adapter: AdapterFile,
    base: BaseModel,
    plan: MergePlan,
    passed: list[Deviation],
    *,
    accept_other_base: bool,
) -> Entry:
    if name in plan.tensors:
        return given(name, plan.tensors[name])
    if name in plan.copies:
        return replace(base.entry(plan.copies[name]), name=name)
    if name not in plan.layers:
        return base.entry(name)
    layer, read = plan.layers[name]

    def summed() -> Tensor:
        weight, held = bound(adapter, layer, base, read, passed, accept_other_base=accept_other_base)
        try:
            update = updated_matrix(held.factors, held.delta.detach())
            merged = merged_weight(weight, layer.kind, [update]).to(base.dtype(read))
        except OverflowError as error:
            raise AdapterError(f"layer {layer.name!r}: {error}") from error
        return _finite(merged, f"layer {layer.name!r}", "or a wider base")

    own = adapter.base_weights.get(layer.name)
    shape = base.shape(read) if own is None else tuple(base_weight(adapter, layer, base, read).shape)
    return computed(name, base.dtype(read), shape, summed)


def _write_index(index: Path, folder: Path, added: dict[str, str], size: int) -> None:
    content = read_json(index, "JSON index", LISTING)
    content["weight_map"].update(added)
    if isinstance(content.get("metadata"), dict) and "total_size" in content["metadata"]:
        content["metadata"]["total_size"] = size
    (folder / index.name).write_text(json.dumps(content, indent=2), encoding="utf-8")
