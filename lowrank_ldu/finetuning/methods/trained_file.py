"""Keep the trained parameters of a model in one file."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import torch

from lowrank_ldu.errors import AdapterError
from lowrank_ldu.files import whole_file

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from torch import nn

FILE = "trained.safetensors"
_METHOD, _OPTIONS = "method", "options"


def save_trained(folder: Path, trained: Mapping[str, nn.Parameter], method: str, options: Mapping[str, Any]) -> None:
    """Write parameters, with the method that trained them.

    Parameters
    ----------
    folder : Path
        Made if it is not there; a file in it is replaced whole.
    trained : mapping of str to nn.Parameter
    method : str
    options : mapping
        JSON values.
    """
    from safetensors.torch import save_file  # noqa: PLC0415  # few programs save

    folder.mkdir(parents=True, exist_ok=True)
    # Each in memory of its own: safetensors refuses tensors that share it.
    tensors = {name: value.detach().cpu().contiguous().clone() for name, value in trained.items()}
    described = {_METHOD: method, _OPTIONS: json.dumps(dict(options), sort_keys=True)}
    with whole_file(folder / FILE) as path:
        save_file(tensors, path, metadata={"format": "pt"} | described)


def load_trained(folder: Path, trained: Mapping[str, nn.Parameter], method: str) -> None:
    """Read parameters into those of a model.

    Raises
    ------
    AdapterError
        There is no such file, it is no such file, or it is of another method or model.
    """
    from safetensors import SafetensorError, safe_open  # noqa: PLC0415

    path = folder / FILE
    if not path.is_file():
        raise AdapterError(f"{folder}: has no {FILE}; accepted: a folder that method {method!r} saved")
    try:
        with safe_open(path, "pt") as file:
            saved_by = (file.metadata() or {}).get(_METHOD)
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  # it is no mapping
    except (SafetensorError, OSError) as error:
        raise AdapterError(f"{path}: cannot be read ({error}); accepted: what method {method!r} saved") from error
    if saved_by != method:
        raise AdapterError(f"{path}: is of method {saved_by!r}; accepted: {method!r}")
    differing = sorted(tensors.keys() ^ trained.keys())
    if differing:
        raise AdapterError(
            f"{path}: {differing[0]!r} is trained in the file or in the model, and not in both; accepted: a file of "
            "the same model, options and trained_whole"
        )
    for name, value in trained.items():
        if tensors[name].shape != value.shape:
            raise AdapterError(
                f"{path}: {name!r} has shape {tuple(tensors[name].shape)}; accepted: {tuple(value.shape)}, as in the "
                "model"
            )
    with torch.no_grad():
        for name, value in trained.items():
            value.copy_(tensors[name])
