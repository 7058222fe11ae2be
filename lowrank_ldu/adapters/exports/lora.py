"""An adapter as a LoRA adapter, which plain PEFT loads without this package."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING

from lowrank_ldu.adapters.errors import AdapterError
from lowrank_ldu.adapters.exports.low_rank import compress, update_pair
from lowrank_ldu.adapters.tensor_stream import given, write_tensors
from lowrank_ldu.nn.kinds import ConvolutionKind, EmbeddingKind, LayerKind, TransposedLinearKind

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from torch import Tensor

    from lowrank_ldu.adapters.base_checkpoint import BaseCheckpoint
    from lowrank_ldu.adapters.file import AdapterFile

LORA_WEIGHTS, LORA_CONFIG = "adapter_model.safetensors", "adapter_config.json"
_PREFIX = "base_model.model."


@dataclass(frozen=True)
class LoraExport:
    """What an export to LoRA came to.

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
    base: BaseCheckpoint,
    folder: Path,
    *,
    rank: int | None = None,
    force: bool = False,
    progress: Callable[[str], None] = lambda _: None,
) -> LoraExport:
    """Write an adapter's updates as LoRA pairs, lora_A = U_r and lora_B = P L_r diag(delta), with alpha = r.

    Parameters
    ----------
    adapter : AdapterFile
    base : BaseCheckpoint
        The weights that the factors are rebuilt from.
    folder : Path
        Exists; gets `adapter_model.safetensors` and `adapter_config.json`.
    rank : int, optional
        Truncate each update to this rank, optimally; layers of a smaller rank stay exact. Exact if not given.
    force : bool
        Accept another base weight, with a warning.
    progress : callable
        Gets the name of each layer, when its turn comes.

    Returns
    -------
    LoraExport

    Raises
    ------
    AdapterError
        A layer is missing in the base, or its weight is another one.
    """
    _refuse_biases(adapter)
    tensors: dict[str, Tensor] = {}
    ranks: dict[str, int] = {}
    errors: dict[str, float] = {}
    kinds: dict[str, type[LayerKind]] = {}
    for name, layer in adapter.layers.items():
        progress(name)
        weight = base.tensor(base.weight_of(name))
        diagonal = layer.bind(layer.kind.as_matrix(weight), force=force)
        left, right = update_pair(diagonal.factors, diagonal.delta.detach())
        errors[name] = 0.0
        if rank is not None and rank < right.shape[0]:
            left, right, errors[name] = compress(left, right, rank)
        ranks[name], kinds[name] = int(right.shape[0]), layer.kind
        tensors.update(_named(name, layer.kind, left, right, weight))
    tensors.update({f"{_PREFIX}{name}": tensor for name, tensor in adapter.module_tensors.items()})
    write_tensors(folder / LORA_WEIGHTS, [given(name, tensor) for name, tensor in tensors.items()], {"format": "pt"})
    (folder / LORA_CONFIG).write_text(json.dumps(_config(adapter, ranks, kinds), indent=2))
    return LoraExport(ranks, errors, (folder / LORA_WEIGHTS).stat().st_size)


def _refuse_biases(adapter: AdapterFile) -> None:
    whole = tuple(f"{name}." for name in adapter.module_names)
    biases = [name for name in adapter.module_tensors if not name.startswith(whole)]
    if biases:
        raise AdapterError(
            f"the adapter trained {', '.join(map(repr, biases[:3]))} beside its layers, which a LoRA adapter without "
            "biases does not hold; accepted: --to merged, or an adapter with bias 'none'"
        )


def _named(name: str, kind: type[LayerKind], left: Tensor, right: Tensor, weight: Tensor) -> dict[str, Tensor]:
    A, B = kind.lora_pair(left, right)
    if kind is EmbeddingKind:
        return {f"{_PREFIX}{name}.lora_embedding_A": A, f"{_PREFIX}{name}.lora_embedding_B": B}
    if kind is ConvolutionKind:
        A = A.reshape(len(A), *weight.shape[1:])
        B = B.reshape(*B.shape, *(1,) * (weight.ndim - 2))
    return {f"{_PREFIX}{name}.lora_A.weight": A, f"{_PREFIX}{name}.lora_B.weight": B}


def _config(adapter: AdapterFile, ranks: dict[str, int], kinds: dict[str, type[LayerKind]]) -> dict[str, object]:
    transposed = {kind is TransposedLinearKind for kind in kinds.values() if kind.linear}
    if len(transposed) > 1:
        raise AdapterError(
            "the adapter is on linear layers of both orientations, which one LoRA configuration cannot say; accepted: "
            "nn.Linear, or Conv1D of transformers"
        )
    common = max(set(ranks.values()), key=list(ranks.values()).count)
    # Anchored, since PEFT matches the end of a name: layer "1.query" is not to stand for "11.query".
    others = {f"^{name.replace('.', chr(92) + '.')}": rank for name, rank in ranks.items() if rank != common}
    return {
        "peft_type": "LORA",
        "task_type": adapter.task_type,
        "base_model_name_or_path": adapter.base_model,
        "inference_mode": True,
        "r": common,
        "lora_alpha": common,
        "rank_pattern": others,
        "alpha_pattern": others,
        "target_modules": list(ranks),
        "modules_to_save": adapter.module_names or None,
        "fan_in_fan_out": True in transposed,
        "lora_dropout": 0.0,
        "bias": "none",
        "init_lora_weights": True,
    }
