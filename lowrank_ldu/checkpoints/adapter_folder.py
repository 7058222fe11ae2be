"""Tell the folder of a LoLDU adapter from one of weights."""

from __future__ import annotations

import os
from pathlib import Path

from lowrank_ldu.checkpoints.model_config import ADAPTER_CONFIGURATION
from lowrank_ldu.checkpoints.safe_reading import read_json
from lowrank_ldu.errors import CheckpointError
from lowrank_ldu.untrusted import CONFIGURATION

WEIGHTS_FILE = "adapter.safetensors"
CONFIG_FILE = "adapter.json"
PEFT_WEIGHTS = "adapter_model.safetensors"
# Weights of a whole model: its folder is one of weights, whatever lies beside them.
_MODEL = ("model.safetensors", "model-", "pytorch_model")


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
    folder = Path(path)
    try:
        names = {entry.name for entry in folder.iterdir()}
        if any(name.startswith(_MODEL) for name in names):
            return False
        if CONFIG_FILE in names:  # whoever reads it says what is missing
            return True
        if not {ADAPTER_CONFIGURATION, PEFT_WEIGHTS} <= names:
            return False
        config = read_json(folder / ADAPTER_CONFIGURATION, "JSON file", CONFIGURATION)
    except (CheckpointError, OSError):  # whoever opens it says so
        return False
    return isinstance(config, dict) and config.get("peft_type") == "LOLDU"
