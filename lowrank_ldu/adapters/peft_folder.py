"""Read the folder that PEFT's save_pretrained wrote for a LoLDU adapter; PEFT is not needed for it."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError
from safetensors.torch import load_file

from lowrank_ldu.adapters.errors import AdapterError
from lowrank_ldu.adapters.file import AdapterFile, StoredLayer, check_numbers
from lowrank_ldu.adapters.layout import LayerRecord
from lowrank_ldu.nn.kinds import KINDS, LinearKind

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor

PEFT_CONFIG, PEFT_WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
_PREFIX, _INFIX = "base_model.model.", ".loldu_adapter."
_OPTIONS = ("init", "preserving", "pivoting", "basis", "parametrization", "train_sigma", "seed")


def read_peft(folder: Path) -> AdapterFile:
    """Read an adapter.

    Its layers have no fingerprint of their base, only a sample of it, and no shape: the base has to supply that.

    Raises
    ------
    AdapterError
        A file is missing or damaged, or is of another method.
    """
    path = folder / PEFT_CONFIG
    try:
        config = json.loads(path.read_bytes())
        tensors = load_file(folder / PEFT_WEIGHTS)
    except OSError as error:
        raise AdapterError(f"{folder}: {error}; accepted: a folder with {PEFT_CONFIG} and {PEFT_WEIGHTS}") from error
    except (ValueError, SafetensorError) as error:
        raise AdapterError(f"{folder}: {PEFT_CONFIG} or {PEFT_WEIGHTS} is damaged ({error})") from error
    if not isinstance(config, dict) or config.get("peft_type") != "LOLDU":
        kind = config.get("peft_type") if isinstance(config, dict) else None
        raise AdapterError(f"{path}: an adapter of type {kind!r}; accepted: 'LOLDU'")
    missing = [key for key in (*_OPTIONS, "r") if key not in config]
    if missing:
        raise AdapterError(f"{path}: has no {', '.join(missing)}; accepted: the configuration of a LoLDU adapter")
    layers: dict[str, dict[str, Tensor]] = {}
    modules: dict[str, Tensor] = {}
    for key, tensor in tensors.items():
        name = key.removeprefix(_PREFIX)
        if _INFIX in name:
            layer, _, number = name.partition(_INFIX)
            layers.setdefault(layer, {})[number] = tensor
        else:
            modules[name] = tensor
    if not layers:
        raise AdapterError(f"{folder / PEFT_WEIGHTS}: holds no layer of a LoLDU adapter")
    stored = {name: _stored(name, config, numbers) for name, numbers in layers.items()}
    return AdapterFile(
        stored,
        list(config.get("modules_to_save") or []),
        modules,
        base_model=config.get("base_model_name_or_path"),
        task_type=config.get("task_type"),
    )


def _stored(name: str, config: dict[str, Any], tensors: dict[str, Tensor]) -> StoredLayer:
    kind = (config.get("layer_kinds") or {}).get(name, LinearKind.name)
    if kind not in KINDS:
        raise AdapterError(f"layer {name!r} has kind {kind!r}; accepted: {', '.join(KINDS)}")
    rank = _for_layer(config.get("rank_pattern") or {}, name, config["r"])
    alpha = _for_layer(config.get("alpha_pattern") or {}, name, config.get("alpha"))
    try:
        options = {key: config[key] for key in _OPTIONS}
        record = LayerRecord(
            kind=kind,
            shape=(0, 0),
            base_dtype="",
            base_sha256="",
            rank=int(rank),
            alpha=float(alpha or rank),
            **options,
        )
    except (TypeError, ValueError) as error:
        raise AdapterError(f"layer {name!r}: {error}") from error
    check_numbers(name, record, tensors)
    return StoredLayer(name, record, tensors)


def _for_layer(pattern: dict[str, Any], name: str, default: Any) -> Any:
    """Return what a pattern of names gives for a layer, as PEFT matches them."""
    return next((value for key, value in pattern.items() if re.match(rf"(.*\.)?({key})$", name)), default)
