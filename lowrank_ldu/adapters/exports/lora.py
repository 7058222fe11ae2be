"""Export an adapter as a LoRA adapter.

Plain PEFT loads it without this package.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from lowrank_ldu.adapters.exports.base import BaseModel
from lowrank_ldu.adapters.exports.low_rank import compress
from lowrank_ldu.adapters.exports.naming import names_in_base, shadowed
from lowrank_ldu.adapters.exports.output import checked_export, export_folder
from lowrank_ldu.adapters.exports.updates import (
    bound,
    bound_again,
    check_module_tensor,
    check_update,
    is_of_base,
    row_blocks,
)
from lowrank_ldu.checkpoints.formats.safetensors_file import SafetensorsReader
from lowrank_ldu.checkpoints.writer import given, write_tensors
from lowrank_ldu.errors import AdapterError
from lowrank_ldu.nn.base_identity import warn_of
from lowrank_ldu.nn.kinds import ConvolutionKind, EmbeddingKind, LayerKind, TransposedLinearKind
from lowrank_ldu.nn.update import update_pair, updated_matrix
from lowrank_ldu.validation import check_count

if TYPE_CHECKING:
    import os
    from collections.abc import Callable
    from pathlib import Path

    from torch import Tensor

    from lowrank_ldu.adapters.exports.naming import BaseNames
    from lowrank_ldu.adapters.stored_layer import AdapterFile
    from lowrank_ldu.checkpoints import CheckpointReader
    from lowrank_ldu.nn.base_identity import Deviation
    from lowrank_ldu.nn.basis import FittedBasis

LORA_WEIGHTS, LORA_CONFIG = "adapter_model.safetensors", "adapter_config.json"
_PREFIX = "base_model.model."
# Tolerance of the relative error that compression reports. It is computed in float64 from factors in float32.
_ERROR_TOLERANCE = 1e-4


@dataclass(frozen=True)
class LoraExport:
    """Hold the ranks, errors and size of an export to LoRA.

    Attributes
    ----------
    ranks : dict of str to int
        Rank of each layer's pair.
    errors : dict of str to float
        Relative Frobenius error of each layer's update, from compression; 0 where the pair is exact.
    bytes : int
        Size of the weights' file.
    """

    ranks: dict[str, int]
    errors: dict[str, float]
    bytes: int


def export_lora(
    adapter: AdapterFile,
    base: CheckpointReader,
    folder: str | os.PathLike[str],
    *,
    rank: int | None = None,
    overwrite: bool = False,
    accept_other_base: bool = False,
    basis: FittedBasis | str | os.PathLike[str] | None = None,
    progress: Callable[[str], None] = lambda _: None,
) -> LoraExport:
    """Write an adapter's updates as LoRA pairs.

    The pairs are lora_A = U_r and lora_B = P L_r K with the core K of any form, and alpha = r. The written pairs are
    read again, and the product of each is compared with the update, before the folder gets its name.

    Parameters
    ----------
    adapter : AdapterFile
    base : CheckpointReader
        What `open_checkpoint` gave: the weights that the factors are rebuilt from.
    folder : path
        Gets `adapter_model.safetensors` and `adapter_config.json`; is there whole or not at all.
    rank : int, optional
        Truncate each update to this rank, optimally; layers of a smaller rank stay exact. Exact if not given.
    overwrite : bool
        Whether the folder may hold files already, which are then replaced.
    accept_other_base : bool
        Accept another base weight, with one warning, of the layer that is furthest off.
    basis : FittedBasis or path, optional
        The fitted basis that the factors are of; looked up as by `load_adapter` if not given.
    progress : callable
        Gets the name of each layer, when its turn comes.

    Returns
    -------
    LoraExport

    Raises
    ------
    TypeError
        An argument is of another type than it should be.
    AdapterError
        A layer is missing in the base, or its weight is another one; PEFT would not compute the sum of base and update
        there; biases were trained, or a module that is tied to another one; what was written is not the update; or the
        adapter's fitted basis is not found.
    OutputError
        The folder cannot be written.
    """
    target = checked_export(
        adapter, base, folder, progress, basis, overwrite=overwrite, accept_other_base=accept_other_base
    )
    rank = None if rank is None else check_count(rank, "rank", 1)
    model = BaseModel(base)
    names = names_in_base(adapter, model)
    _refuse_obstacles(adapter, model)
    others = _other_tensors(adapter, model, names)
    _refuse_tied(adapter, others)
    _refuse_alike(adapter, model, names)
    tensors: dict[str, Tensor] = {}
    ranks: dict[str, int] = {}
    errors: dict[str, float] = {}
    kinds: dict[str, type[LayerKind]] = {}
    passed: list[Deviation] = []
    for name, layer in adapter.layers.items():
        progress(name)
        weight, held = bound(
            adapter, layer, model, str(names.layers[name].read), passed, accept_other_base=accept_other_base
        )
        left, right = update_pair(held.factors, held.delta.detach())
        if not bool(left.isfinite().all()) or not bool(right.isfinite().all()):
            raise AdapterError(f"layer {name!r}: its update overflows {left.dtype}; accepted: a smaller one")
        errors[name] = 0.0
        if rank is not None and rank < right.shape[0]:
            left, right, errors[name] = compress(left, right, rank)
        ranks[name], kinds[name] = int(right.shape[0]), layer.kind
        tensors.update(_named(name, layer.kind, left, right, weight))
    tensors.update({f"{_PREFIX}{name}": tensor for name, tensor in others.items()})
    config = _config(adapter, ranks, kinds, shadowed(iter(model), adapter.layers))
    with export_folder(adapter, model, target, {LORA_WEIGHTS, LORA_CONFIG}, overwrite=overwrite) as out:
        path = out / LORA_WEIGHTS
        write_tensors(path, [given(name, tensor) for name, tensor in tensors.items()], {"format": "pt"})
        (out / LORA_CONFIG).write_text(json.dumps(config, indent=2), encoding="utf-8")
        size = path.stat().st_size
        _check_lora(adapter, model, names, errors, out)
    warn_of(passed)
    return LoraExport(ranks, errors, size)


def _refuse_obstacles(adapter: AdapterFile, base: BaseModel) -> None:
    """Refuse layers whose output is not base plus pair.

    The adapter says which these are. For older adapters transformers says it.
    """
    for name, others in adapter.shared.items():
        raise AdapterError(
            f"layer {name!r} stands as {others[0]!r}, too, where PEFT would put no pair; accepted: --to merged or delta"
        )
    known = {} if base.architecture is None else base.architecture.lora_obstacles
    for name, layer in adapter.layers.items():
        obstacle = layer.record.lora_obstacle or known.get(name)
        if obstacle:
            raise AdapterError(
                f"layer {name!r} is a {obstacle}, of which PEFT computes something else with a LoRA pair; accepted: "
                "--to merged or delta, or an adapter without it"
            )


def _other_tensors(adapter: AdapterFile, base: BaseModel, names: BaseNames) -> dict[str, Tensor]:
    """Return the tensors to be written beside the pairs.

    They are modules that were trained whole, and embeddings with other rows.
    """
    whole = tuple(f"{name}." for name in adapter.module_names)
    kept, biases = {}, []
    for name, tensor in adapter.module_tensors.items():
        read = names.modules[name].read
        if name.startswith(whole):
            kept[name] = check_module_tensor(tensor, name)
        elif not is_of_base(tensor, base, read):
            # PEFT saves an embedding with other rows beside the adapter. Any other trained tensor is a bias.
            is_embedding = read is not None and base.shape(read)[1:] == tensor.shape[1:] != ()
            kept.update({name: check_module_tensor(tensor, name)} if is_embedding else {})
            biases.extend([] if is_embedding else [name])
    if biases:
        raise AdapterError(
            f"the adapter trained {', '.join(map(repr, biases[:3]))} beside its layers, which a LoRA adapter without "
            "biases does not hold; accepted: --to merged, or an adapter with bias 'none'"
        )
    for name, weight in adapter.base_weights.items():
        if tuple(weight.shape) != base.shape(str(names.layers[name].read)):
            kept[f"{name}.base_layer.weight"] = weight
    return kept


def _refuse_tied(adapter: AdapterFile, tensors: dict[str, Tensor]) -> None:
    """Refuse modules that were trained together with tied ones.

    PEFT puts the numbers into a copy of the module, which is tied to none.
    """
    for name, others in (adapter.tied or {}).items():
        other = next((other for other in others if other not in tensors), None)
        if name in tensors and other is not None:
            raise AdapterError(
                f"module tensor {name!r} was trained tied to {other!r}, which PEFT would leave as it was; accepted: "
                "--to merged"
            )


def _refuse_alike(adapter: AdapterFile, base: BaseModel, names: BaseNames) -> None:
    """Refuse names of modules that other names end with.

    PEFT takes all modules of these names for modules that were trained.
    """
    modules = set(adapter.layers)
    # The names of these modules on disk may be longer.
    own = {place.read for place in names.modules.values()}
    for parts in (name.split(".") for name in base if name not in own):
        modules |= {".".join(parts[:length]) for length in range(1, len(parts))}
    for name in adapter.module_names:
        alike = next((other for other in sorted(modules - {name}) if other.endswith(name)), None)
        if alike is not None:
            raise AdapterError(
                f"module {name!r} was trained whole, and PEFT would take {alike!r} for it, too; accepted: --to merged"
            )


def _named(name: str, kind: type[LayerKind], left: Tensor, right: Tensor, weight: Tensor) -> dict[str, Tensor]:
    A, B = kind.lora_pair(left, right)
    if kind is EmbeddingKind:
        return {f"{_PREFIX}{name}.lora_embedding_A": A, f"{_PREFIX}{name}.lora_embedding_B": B}
    if kind is ConvolutionKind:
        A = A.reshape(len(A), *weight.shape[1:])
        B = B.reshape(*B.shape, *(1,) * (weight.ndim - 2))
    return {f"{_PREFIX}{name}.lora_A.weight": A, f"{_PREFIX}{name}.lora_B.weight": B}


def _config(
    adapter: AdapterFile, ranks: dict[str, int], kinds: dict[str, type[LayerKind]], others: list[str]
) -> dict[str, object]:
    transposed = {kind is TransposedLinearKind for kind in kinds.values() if kind.linear}
    if len(transposed) > 1:
        raise AdapterError(
            "the adapter is on linear layers of both orientations, which one LoRA configuration cannot say; accepted: "
            "nn.Linear, or Conv1D of transformers"
        )
    common = max(set(ranks.values()), key=list(ranks.values()).count)
    # Anchored, since PEFT matches the end of a name.
    patterns = {f"^{re.escape(name)}": rank for name, rank in ranks.items() if rank != common}
    return {
        "peft_type": "LORA",
        "task_type": adapter.task_type,
        "base_model_name_or_path": adapter.base_model,
        "inference_mode": True,
        "r": common,
        "lora_alpha": common,
        "rank_pattern": patterns,
        "alpha_pattern": patterns,
        # A list is written where it is exact, since every tool reads a list. Elsewhere its names would match the ends
        # of others.
        "target_modules": "|".join(f"^{re.escape(name)}" for name in ranks) if others else list(ranks),
        "modules_to_save": adapter.module_names or None,
        "fan_in_fan_out": True in transposed,
        "lora_dropout": 0.0,
        "bias": "none",
        "init_lora_weights": True,
    }


def _check_lora(
    adapter: AdapterFile, base: BaseModel, names: BaseNames, errors: dict[str, float], folder: Path
) -> None:
    """Compare every written pair with its update.

    The product of an exact pair is compared with the update, and the error of a compressed pair with the reported
    error.
    """
    written = SafetensorsReader(folder / LORA_WEIGHTS)
    for name, layer in adapter.layers.items():
        _, held = bound_again(adapter, layer, base, str(names.layers[name].read))
        left, right = _written_pair(written, name, layer.kind)
        exact = updated_matrix(held.factors, held.delta.detach())
        if errors[name] == 0.0:
            check_update(exact, (left, right), f"{_PREFIX}{name}.lora_B")
            continue
        missed = sum(
            float((exact[rows].double() - left[rows].double() @ right.double()).norm()) ** 2
            for rows in row_blocks(*exact.shape)
        )
        share = missed**0.5 / float(exact.double().norm())
        if not abs(share - errors[name]) <= _ERROR_TOLERANCE:
            raise AdapterError(f"export failed its check: layer {name!r} is off by {share:.3g}, not {errors[name]:.3g}")


def _written_pair(written: SafetensorsReader, name: str, kind: type[LayerKind]) -> tuple[Tensor, Tensor]:
    if kind is EmbeddingKind:
        A, B = (written.load(f"{_PREFIX}{name}.lora_embedding_{which}") for which in "AB")
        return A.T, B.T
    A, B = (written.load(f"{_PREFIX}{name}.lora_{which}.weight") for which in "AB")
    return B.flatten(1), A.flatten(1)
