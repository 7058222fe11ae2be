"""Import packages of the ``finetune`` extra, and of those beside it."""

from __future__ import annotations

from importlib import import_module
from typing import Any

from lowrank_ldu.errors import MissingExtraError


def require(module: str, extra: str = "finetune") -> Any:
    """Import a module of an extra.

    Parameters
    ----------
    module : str
        Dotted name, ``"peft"`` or ``"sklearn.datasets"``.
    extra : str
        Which has its package.

    Returns
    -------
    module
        The imported module, untyped: these packages change their annotations between the versions supported here.

    Raises
    ------
    MissingExtraError
        The package is not installed; the message names the extra.
    """
    try:
        return import_module(module)
    except ImportError as error:
        message = f"{module} is needed here and could not be imported: pip install 'lowrank-ldu[{extra}]'"
        raise MissingExtraError(message) from error
