"""Read the folder that PEFT's save_pretrained wrote.

It holds a LoLDU adapter. PEFT is not needed to read it.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from safetensors.torch import load

from lowrank_ldu.adapters.format import check_numbers, checked_basis_file, checked_record
from lowrank_ldu.adapters.input_files import read_json, read_tensors
from lowrank_ldu.adapters.stored_layer import AdapterFile, StoredLayer
from lowrank_ldu.checkpoints.adapter_folder import PEFT_WEIGHTS
from lowrank_ldu.checkpoints.model_config import ADAPTER_CONFIGURATION
from lowrank_ldu.checkpoints.safe_reading import reason_of
from lowrank_ldu.errors import AdapterError
from lowrank_ldu.nn.kinds import LinearKind, TransposedLinearKind
from lowrank_ldu.nn.options import LATER_OPTIONS, OPTION_NAMES
from lowrank_ldu.patterns import PatternError, Patterns
from lowrank_ldu.validation import shown

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor

PEFT_CONFIG = ADAPTER_CONFIGURATION
_PREFIX, _INFIX = "base_model.model.", ".loldu_adapter."
# PEFT keeps the embeddings of a model beside an adapter of one of them.
_BASE_WEIGHT = ".base_layer.weight"
# With bias="all" PEFT saves the biases of modules that were trained whole twice more, under the names of its wrapper.
_WRAPPED = re.compile(r"\.(modules_to_save|original_module)\.")
_OBJECTS = ("layer_kinds", "lora_obstacles", "rank_pattern", "alpha_pattern")
# Options that are the same for all layers.
_OPTIONS = tuple(name for name in OPTION_NAMES if name not in {"rank", "alpha"})


def read_peft(folder: Path) -> AdapterFile:
    """Read an adapter from PEFT's folder.

    Its layers have no fingerprint of their base, only a sample of it, and no shape: the base has to supply that.

    Raises
    ------
    AdapterError
        A file is missing or damaged, or is of another method.
    """
    path, accepted = folder / PEFT_CONFIG, f"a folder with {PEFT_CONFIG} and {PEFT_WEIGHTS}"
    config, _ = read_json(path, accepted)
    data = read_tensors(folder / PEFT_WEIGHTS, accepted)
    try:
        tensors = load(data)
    except Exception as error:  # a bare KeyError where torch lacks a dtype
        raise AdapterError(f"{folder / PEFT_WEIGHTS}: is damaged ({reason_of(error)})") from error
    if not isinstance(config, dict) or config.get("peft_type") != "LOLDU":
        kind = config.get("peft_type") if isinstance(config, dict) else None
        raise AdapterError(f"{path}: an adapter of type {kind!r}; accepted: 'LOLDU'")
    missing = [key for key in (*_OPTIONS, "r") if key not in config and key not in LATER_OPTIONS]
    if missing:
        raise AdapterError(f"{path}: has no {', '.join(missing)}; accepted: the configuration of a LoLDU adapter")
    layers: dict[str, dict[str, Tensor]] = {}
    others: dict[str, Tensor] = {}
    weights: dict[str, Tensor] = {}
    for key, tensor in sorted(tensors.items()):
        name = key.removeprefix(_PREFIX)
        if _INFIX in name:
            layer, _, number = name.partition(_INFIX)
            layers.setdefault(layer, {})[number] = tensor
        elif name.endswith(_BASE_WEIGHT):
            weights[name.removesuffix(_BASE_WEIGHT)] = tensor
        elif not _WRAPPED.search(name):
            others[name.replace(".base_layer.", ".")] = tensor
    if not layers:
        raise AdapterError(f"{folder / PEFT_WEIGHTS}: holds no layer of a LoLDU adapter")
    objects = _objects(path, config)
    patterns = [Patterns(objects[key]) for key in ("rank_pattern", "alpha_pattern")]
    stored = {
        name: _stored(path, name, config, numbers, objects=objects, patterns=patterns)
        for name, numbers in layers.items()
    }
    return AdapterFile(
        stored,
        _module_names(path, config.get("modules_to_save"), others),
        others,
        base_model=config.get("base_model_name_or_path"),
        task_type=config.get("task_type"),
        base_weights={name: tensor for name, tensor in weights.items() if name in layers},
        # PEFT trains a copy of each module, which is tied to none.
        tied={},
        basis_file=checked_basis_file(path, config),
    )


def _objects(path: Path, config: dict[str, Any]) -> dict[str, dict[str, Any]]:
    objects = {}
    for key in _OBJECTS:
        value = config.get(key)
        if not isinstance(value, dict | None):
            raise AdapterError(f"{path}: {key} is {shown(value)}; accepted: an object, names to values")
        objects[key] = value or {}
    return objects


def _stored(
    path: Path,
    name: str,
    config: dict[str, Any],
    tensors: dict[str, Tensor],
    *,
    objects: dict[str, dict[str, Any]],
    patterns: list[Patterns],
) -> StoredLayer:
    where = f"{path}: layer {name!r}"
    kinds, obstacles = objects["layer_kinds"], objects["lora_obstacles"]
    # A list of kinds is there if any layer is not of the plain kind. Files without a list name one kind for all layers.
    plain = TransposedLinearKind if not kinds and config.get("fan_in_fan_out") is True else LinearKind
    try:
        rank, alpha = (
            pattern.value_for(name, config.get(key)) for pattern, key in zip(patterns, ("r", "alpha"), strict=True)
        )
    except PatternError as error:
        raise AdapterError(f"{path}: rank_pattern or alpha_pattern holds what {error}") from error
    record = checked_record(
        where,
        {
            "kind": kinds.get(name, plain.name),
            "shape": [0, 0],
            "base_dtype": "",
            "base_sha256": "",
            "lora_obstacle": obstacles.get(name, ""),
            "rank": rank,
            "alpha": rank if alpha is None else alpha,
            **{key: config[key] for key in _OPTIONS if key in config},
        },
    )
    check_numbers(where, record, tensors, sketched=False)
    return StoredLayer(name, record, tensors)


def _module_names(path: Path, listed: Any, tensors: dict[str, Tensor]) -> list[str]:
    """Return the qualified names of listed modules.

    They are listed by their last parts. Not all of them need to be in the file.
    """
    if not isinstance(listed, list | None) or not all(isinstance(name, str) for name in listed or []):
        raise AdapterError(f"{path}: modules_to_save is {listed!r}; accepted: a list of names, or null")
    found = set()
    for name in listed or []:
        matches = (re.match(rf"((?:.*\.)?{re.escape(name)})\.", tensor) for tensor in tensors)
        found |= {match[1] for match in matches if match}
    return sorted(found)
