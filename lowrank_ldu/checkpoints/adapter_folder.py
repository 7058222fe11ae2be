"""Tell the folder of an adapter from one of weights, and by which method it is."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lowrank_ldu.checkpoints.model_config import ADAPTER_CONFIGURATION, is_there
from lowrank_ldu.checkpoints.remote.path import RemotePath
from lowrank_ldu.checkpoints.safe_reading import read_json
from lowrank_ldu.errors import CheckpointError
from lowrank_ldu.untrusted import CONFIGURATION
from lowrank_ldu.validation import shown

if TYPE_CHECKING:
    from collections.abc import Collection

    from lowrank_ldu.checkpoints.remote.path import Place

WEIGHTS_FILE = "adapter.safetensors"
CONFIG_FILE = "adapter.json"
PEFT_WEIGHTS = "adapter_model.safetensors"
# Names of methods, as PEFT's configurations have them.
LORA, LOLDU = "LORA", "LOLDU"
# What PEFT's names of files of tensors begin with.
_PEFT_FILES = "adapter_model."
# Weights of a whole model: its folder is one of weights, whatever lies beside them.
_MODEL = ("model.safetensors", "model-", "pytorch_model")


def adapter_config(folder: Place) -> dict[str, Any] | None:
    """Return the configuration that PEFT saved in a folder, None if there is none.

    Raises
    ------
    CheckpointError
        There is a file of that name, and it is no configuration.
    """
    file = folder / ADAPTER_CONFIGURATION
    if not file.is_file():
        return None
    config = read_json(file, "JSON file", CONFIGURATION)
    if not isinstance(config, dict):
        raise CheckpointError(f"{file}: holds a {type(config).__name__}; accepted: an object with PEFT's options")
    return config


def adapter_method(names: Collection[str], config: dict[str, Any] | None) -> str | None:
    """Return the method of a folder's adapter, None of a folder of weights.

    Parameters
    ----------
    names : collection of str
        Of the files in the folder.
    config : dict or None
        Of `adapter_config`.

    Examples
    --------
    >>> adapter_method(["adapter_config.json", "adapter_model.safetensors"], {"peft_type": "LOHA"})
    'LOHA'
    >>> adapter_method(["adapter_config.json", "model.safetensors"], {"peft_type": "LOHA"})
    """
    if any(name.startswith(_MODEL) for name in names):
        return None
    if CONFIG_FILE in names:  # whoever reads it says what is missing
        return LOLDU
    method = (config or {}).get("peft_type")
    return method if any(map(_is_of_peft, names)) and isinstance(method, str) else None


def method_in(folder: Place) -> str | None:
    """Look into a folder for the method of its adapter, as `adapter_method`.

    Raises
    ------
    CheckpointError
        PEFT's configuration is beside its tensors, and is none.
    OSError
        The folder cannot be listed.
    """
    names = [entry.name for entry in folder.iterdir()]
    return adapter_method(names, adapter_config(folder) if any(map(_is_of_peft, names)) else None)


def _is_of_peft(name: str) -> bool:
    return name.startswith(_PEFT_FILES)


def why_no_weights(folder: Place, method: str | None) -> str:
    """Say why a folder's tensors are no weights, and what is accepted; nothing of weights.

    Parameters
    ----------
    folder : pathlib.Path or RemotePath
    method : str or None
        Of `adapter_method`.
    """
    if method is None:
        return ""
    if method != LOLDU:
        return (
            f"holds an adapter of the method {shown(method)}, whose tensors are no weights, and no updates as those of "
            "LoRA and LoLDU; accepted: the weights that it makes, where PEFT can merge it (merge_and_unload, then "
            "save_pretrained)"
        )
    on_server = isinstance(folder, RemotePath)
    where = ", and is read from this machine only; accepted: a copy here" if on_server else "; accepted: this folder"
    return (
        f"holds a LoLDU adapter, whose updates are made from its base's weights{where} as TUNED of lowrank-ldu compare "
        "BASE TUNED, which measures them (from Python, opened by lowrank_ldu.adapters.open_updates)"
    )


def why_no_weights_in(file: Place) -> str:
    """Say why the tensors of a file are no weights, where an adapter's configuration beside it says so."""
    config = ADAPTER_CONFIGURATION if _is_of_peft(file.name) else CONFIG_FILE if file.name == WEIGHTS_FILE else ""
    if not config or not is_there(file.parent / config):
        return ""
    return f"has the tensors of an adapter, which are no weights, by the {config} beside it; accepted: its folder"


def is_adapter_folder(path: object) -> bool:
    """Return whether a path is the folder of a LoLDU adapter, and of no model.

    The names of its files tell, and PEFT's configuration.

    Examples
    --------
    >>> is_adapter_folder("no/such/folder")
    False
    """
    if not isinstance(path, str | os.PathLike) or "\0" in os.fspath(path):
        return False
    try:
        return method_in(Path(path)) == LOLDU
    except (CheckpointError, OSError):  # whoever opens it says so
        return False
