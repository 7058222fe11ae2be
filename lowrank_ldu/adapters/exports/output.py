"""Write an export to a folder of its own.

The folder is there whole, checked, and apart from the files that it was made of.
"""

from __future__ import annotations

import os
from contextlib import contextmanager
from typing import TYPE_CHECKING

from lowrank_ldu.adapters.bases import find_bases_of
from lowrank_ldu.adapters.input_files import checked_path
from lowrank_ldu.adapters.stored_layer import AdapterFile
from lowrank_ldu.checkpoints import CheckpointReader
from lowrank_ldu.errors import AdapterError
from lowrank_ldu.files import whole_folder
from lowrank_ldu.validation import check_flag

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from lowrank_ldu.adapters.exports.base import BaseModel


# Weights in other formats beside the merged ones would be the unmerged model. An adapter beside the merged model would
# be added to it again when it is loaded.
WEIGHTS = (
    ".bin", ".pt", ".pth", ".ckpt", ".safetensors", ".h5", ".msgpack", ".onnx", ".onnx_data", ".gguf", ".tflite", ".ot",
    ".npz", ".index.json", ".mlmodel", ".pdparams",
)  # fmt: skip
ADAPTER_FILES = {"adapter_config.json", "adapter.json"}


def checked_export(
    adapter: object, base: object, folder: object, progress: object, basis: object, **flags: object
) -> Path:
    """Check the arguments of an export, and return its folder.

    Layers know the adapter's fitted bases from here on.

    Raises
    ------
    TypeError
        One is not; the message says which.
    AdapterError
        A fitted basis is not found.
    """
    if not isinstance(adapter, AdapterFile):
        raise TypeError(f"adapter is a {type(adapter).__name__}; accepted: an AdapterFile, what read_adapter returns")
    if not isinstance(base, CheckpointReader):
        raise TypeError(f"base is a {type(base).__name__}; accepted: a CheckpointReader, what open_checkpoint returns")
    if not callable(progress):
        raise TypeError(f"progress is a {type(progress).__name__}; accepted: a function of a name")
    for name, value in flags.items():
        check_flag(value, name)
    target = checked_path(folder, "folder")
    find_bases_of(adapter, basis)
    return target


@contextmanager
def export_folder(
    adapter: AdapterFile,
    base: BaseModel,
    target: Path,
    written: set[str],
    *,
    overwrite: bool,
) -> Iterator[Path]:
    """Give a temporary folder that replaces the target in the end.

    It does so if the body, which writes and checks, succeeds.

    Parameters
    ----------
    adapter : AdapterFile
    base : BaseModel
    target : path
    written : set of str
        Names of the files of weights that will be in it.
    overwrite : bool

    Raises
    ------
    AdapterError
        A file of the adapter or of the base lies in the target, by whatever path or link; or other weights do, which
        would be loaded with or in place of those that are written.
    OutputError
        The target cannot be written, or holds something (without `overwrite`).
    """
    _check_apart(adapter, base, target)
    _check_alone(target, written)
    with whole_folder(target, overwrite=overwrite, otherwise="overwrite=True (--overwrite of export)") as folder:
        yield folder


def _check_alone(target: Path, written: set[str]) -> None:
    """Refuse a folder with other weights.

    They are of an earlier export or of anything else, and would stay beside the new ones.
    """
    if not os.path.isdir(target):  # noqa: PTH112  # Path's raises where no folder can have such a name
        return
    for path in sorted(target.iterdir()):
        if path.name not in written and (path.name in ADAPTER_FILES or path.name.endswith(WEIGHTS)):
            raise AdapterError(
                f"{target}: holds {path.name}, which would be loaded beside what is written; accepted: a folder "
                "without other weights and adapters"
            )


def _check_apart(adapter: AdapterFile, base: BaseModel, target: Path) -> None:
    try:
        place = target.resolve()
        inputs = {base.root / name: "base model" for name in base.files}
        if base.index is not None:
            inputs[base.index] = "base model"
        if base.path.is_dir():
            inputs[base.path] = "base model"
        if adapter.path is not None:
            inputs |= dict.fromkeys([adapter.path, *adapter.path.iterdir()], "adapter")
        inside = {what for path, what in inputs.items() if path.resolve().is_relative_to(place)}
    except (OSError, RuntimeError) as error:  # a circle of links is a RuntimeError
        raise AdapterError(f"{target}: cannot be looked up ({error})") from error
    if inside:
        what = "base model" if "base model" in inside else inside.pop()
        raise AdapterError(f"{target}: holds the {what}; accepted: another folder")
