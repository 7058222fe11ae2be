"""Open what is analyzed: a path, a name on the hub, a module or a state dict."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from lowrank_ldu.analysis.memory import MemoryConfig, MemoryReader
from lowrank_ldu.checkpoints.reader import UpdatesReader
from lowrank_ldu.checkpoints.weights import WeightsReader, open_weights
from lowrank_ldu.errors import CheckpointError
from lowrank_ldu.validation import shown

Source = str | os.PathLike[str] | nn.Module | Mapping[str, Any] | UpdatesReader
_ACCEPTED = (
    "a path, hf://OWNER/NAME or another URL, a torch.nn.Module, or a state dict (a mapping of str to torch.Tensor)"
)
_HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+")


def is_in_memory(source: Source) -> bool:
    """Say whether a source is a module or a state dict."""
    return isinstance(source, nn.Module | Mapping)


def open_source(source: Source, name: str = "source") -> WeightsReader:
    """Open a source for the matrices in it.

    Parameters
    ----------
    source : str, os.PathLike, nn.Module, mapping of str to torch.Tensor, or UpdatesReader
        A path or URL as for `lowrank_ldu.checkpoints.open_weights`, or a model in memory, whose tensors may be on any
        device. Of a module it is what its `state_dict()` holds. What is combined or quantized is taken apart as in
        files, by the module's `config` where a file's would be. Or the updates of an adapter, as of
        `lowrank_ldu.adapters.open_updates`, which are closed with the reader.
    name : str
        What the caller calls it, for the messages.

    Raises
    ------
    TypeError
        It is none of these, or a mapping with other keys, or without any tensor.
    CheckpointError
        A checkpoint cannot be read.

    Examples
    --------
    >>> with open_source(nn.Linear(3, 2)) as reader:
    ...     print(reader.path, [(info.name, info.shape) for info in reader.tensors])
    Linear in memory [('weight', (2, 3)), ('bias', (2,))]
    """
    if isinstance(source, nn.Module):
        config = MemoryConfig(_configuration(source))
        reader = MemoryReader(source.state_dict(), f"{type(source).__name__} in memory")
        return WeightsReader(reader, lambda _: config)
    if isinstance(source, UpdatesReader):
        return WeightsReader(source)
    if isinstance(source, Mapping):
        _check_mapping(source, name)
        config = MemoryConfig({})
        return WeightsReader(MemoryReader(source, "state dict in memory"), lambda _: config)
    _check_path(source, name)
    if isinstance(source, str) and _HUB_NAME.fullmatch(source) and not os.path.lexists(source):
        raise CheckpointError(f"{source}: no such file or directory; a name on the hub begins so: hf://{source}")
    return open_weights(source)


def _check_path(source: object, name: str) -> None:
    if not isinstance(source, str | os.PathLike):
        more = ", {'weight': tensor} say" if isinstance(source, torch.Tensor) else ""
        raise TypeError(f"{name} is a {type(source).__name__}; accepted: {_ACCEPTED}{more}")


def _check_mapping(source: Mapping[Any, Any], name: str) -> None:
    for key in source:
        if not isinstance(key, str):
            raise TypeError(f"{name} has the key {shown(key)}; accepted: {_ACCEPTED}")
    if source and not any(isinstance(value, torch.Tensor) for value in source.values()):
        key, value = next(iter(source.items()))
        raise TypeError(f"{name}[{key!r}] is a {type(value).__name__}; accepted: {_ACCEPTED}")


def _configuration(module: nn.Module) -> dict[str, Any]:
    """Return a model's configuration as its file has it."""
    config = getattr(module, "config", None)
    to_dict = getattr(config, "to_dict", None)  # of transformers; in diffusers the configuration is a dict itself
    values = to_dict() if callable(to_dict) else config
    return values if isinstance(values, dict) else {}
