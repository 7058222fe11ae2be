"""Read an adapter's folder, of this package or of PEFT, without a model."""

from __future__ import annotations

import os
from dataclasses import replace
from typing import TYPE_CHECKING

from lowrank_ldu.adapters.input_files import checked_path
from lowrank_ldu.adapters.layout import CONFIG_FILE
from lowrank_ldu.adapters.native_folder import read_native
from lowrank_ldu.adapters.peft_folder import PEFT_CONFIG, read_peft
from lowrank_ldu.errors import AdapterError

if TYPE_CHECKING:
    from lowrank_ldu.adapters.stored_layer import AdapterFile


def read_adapter(path: str | os.PathLike[str]) -> AdapterFile:
    """Read the folder that `save_adapter`, or `save_pretrained` of a PEFT model with a `LolduConfig`, wrote.

    Parameters
    ----------
    path : path
        The folder.

    Returns
    -------
    AdapterFile

    Raises
    ------
    TypeError
        `path` is no path.
    AdapterError
        A file is missing, damaged or changed, or is not of such an adapter; or `path` is a file.
    """
    folder = checked_path(path)
    if os.path.isfile(folder):  # noqa: PTH113  # Path's raises where no file can have such a name
        raise AdapterError(f"{folder}: is a file; accepted: the folder of an adapter, such as {folder.parent}")
    of_peft, native = (os.path.lexists(folder / name) for name in (PEFT_CONFIG, CONFIG_FILE))
    if of_peft and native:
        raise AdapterError(f"{folder}: holds two adapters, {PEFT_CONFIG} and {CONFIG_FILE}; accepted: a folder of one")
    adapter = read_peft(folder) if of_peft else read_native(folder)
    return replace(adapter, path=folder)
