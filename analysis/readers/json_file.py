"""A JSON file beside weights."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from lowrank_ldu.analysis.readers.base import CheckpointError
from lowrank_ldu.analysis.readers.extra import refused_as

if TYPE_CHECKING:
    from pathlib import Path

# The index of a million tensors is not half as large.
_MOST_BYTES = 2**28


def read_json(path: Path, what: str) -> Any:
    """Return what a JSON file holds.

    Parameters
    ----------
    path : pathlib.Path
    what : str
        What the file is expected to be, for the message.

    Raises
    ------
    CheckpointError
        It cannot be read, is larger than 256 MiB, or is not JSON.
    """
    with refused_as(path, what, (OSError, RecursionError, ValueError)):
        with path.open("rb") as file:
            content = file.read(_MOST_BYTES + 1)
        if len(content) > _MOST_BYTES:
            raise CheckpointError(f"{path}: is larger than {_MOST_BYTES} bytes; accepted: a {what} of at most that")
        return json.loads(content)
