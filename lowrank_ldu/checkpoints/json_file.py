"""A JSON file beside weights."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from lowrank_ldu import untrusted
from lowrank_ldu.checkpoints.libraries import refused_as

if TYPE_CHECKING:
    from pathlib import Path

# How the weights were quantized stands in the first, or in a file of its own: of AutoGPTQ, and of AutoAWQ.
CONFIGURATIONS = ("config.json", "quantize_config.json", "quant_config.json")


def read_json(path: Path, what: str, limit: untrusted.Limit, *, lenient: bool = False) -> Any:
    """Return what a JSON file holds.

    Parameters
    ----------
    path : pathlib.Path
    what : str
        What the file is expected to be, for the message.
    limit, lenient
        As for `lowrank_ldu.untrusted.strict_json`.

    Raises
    ------
    CheckpointError
        It cannot be read, is too large, or is no JSON that says one thing.
    """
    with refused_as(path, what, (OSError, ValueError)):
        return untrusted.read_json(path, limit, lenient=lenient)
