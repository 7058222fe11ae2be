"""The libraries of formats that most users have no files of: imported where such a file is opened."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from lowrank_ldu.analysis.readers.base import CheckpointError

if TYPE_CHECKING:
    from pathlib import Path


def library_for(path: Path, module: str) -> Any:
    """Return a module that reads the format of a file.

    Raises
    ------
    CheckpointError
        It is not installed; the message names the extra that brings it.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        package = module.partition(".")[0]
        raise CheckpointError(
            f"{path}: reading {path.suffix} files needs {package}: pip install 'lowrank-ldu[formats]'"
        ) from error
