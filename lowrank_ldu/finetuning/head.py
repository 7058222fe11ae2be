"""Train the head of a model alone, before a method adapts the rest.

The gradients of a model with a new head say little of its task, and methods are fitted to them.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save

from lowrank_ldu.errors import DivergenceError, OptionError
from lowrank_ldu.files import replace_file
from lowrank_ldu.finetuning.methods.modules import whole_modules
from lowrank_ldu.finetuning.processes import is_first

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
    from pathlib import Path

    from torch import nn


@contextlib.contextmanager
def kept_head(model: nn.Module, head: Sequence[str], folder: Path | None, key: Mapping[str, Any]) -> Iterator[bool]:
    """Take a head from a folder, or keep there what is trained meanwhile.

    Parameters
    ----------
    model : nn.Module
    head : sequence of str
        Names of modules, or ends of names.
    folder : pathlib.Path, optional
        Nothing is kept without one.
    key : mapping
        Everything that determines the head; values for JSON.

    Yields
    ------
    bool
        Whether there was one, which the model has now.
    """
    digest = hashlib.sha256(json.dumps({**key, "torch": torch.__version__}, sort_keys=True).encode()).hexdigest()
    file = None if folder is None else folder / f"{digest[:32]}.safetensors"
    parameters = dict(_parameters(model, head))
    values = None if file is None else _kept(file)
    if values is not None and values.keys() == parameters.keys():
        with torch.no_grad():
            for name, parameter in parameters.items():
                parameter.copy_(values[name])
        yield True
        return
    yield False
    if file is not None and is_first():
        file.parent.mkdir(parents=True, exist_ok=True)
        replace_file(file, save({name: each.detach().cpu().contiguous() for name, each in parameters.items()}))


def _kept(file: Path) -> dict[str, torch.Tensor] | None:
    """Return a head's file; None where there is none, or a broken one."""
    try:
        return load(file.read_bytes())
    except (OSError, SafetensorError):
        return None


def _parameters(model: nn.Module, head: Sequence[str]) -> Iterator[tuple[str, nn.Parameter]]:
    names = tuple(f"{name}." for name in whole_modules(model, head))
    return ((name, value) for name, value in model.named_parameters() if names and name.startswith(names))


def train_head(
    model: nn.Module,
    head: Sequence[str],
    batches_of: Callable[[int], Iterable[Any]],
    *,
    learning_rate: float,
    epochs: int,
    steps: int,
    loss: Callable[[nn.Module, Any], torch.Tensor] | None = None,
) -> None:
    """Train the modules of a head, and nothing else.

    AdamW without decay, at a rate that falls to zero. The model is in evaluation mode meanwhile, and nothing is drawn
    at random, so that the same call gives the same head. Modes and requires_grad are as before afterwards.

    Parameters
    ----------
    model : nn.Module
        Which computes its loss from a batch, `model(**batch).loss`, where no other loss is given.
    head : sequence of str
        Names of modules, or ends of names.
    batches_of : callable
        From the number of an epoch to its batches.
    learning_rate : float
    epochs : int
    steps : int
        Batches in an epoch.
    loss : callable, optional
        As of `LoadedTask`.

    Raises
    ------
    OptionError
        The model has no head, or a name matches nothing.
    DivergenceError
        The loss is not finite.
    """
    trained = [value for _, value in _parameters(model, head)]
    if not trained:
        raise OptionError("head_epochs is given, and the model has no head; accepted: 0, or modules_to_save")
    before = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    modes = [(module, module.training) for module in model.modules()]
    model.requires_grad_(False).eval()
    for parameter in trained:
        parameter.requires_grad = True
    optimizer = torch.optim.AdamW(trained, lr=learning_rate, weight_decay=0.0)
    total = epochs * steps
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: (total - step) / total)
    try:
        for epoch in range(epochs):
            for batch in batches_of(epoch):
                optimizer.zero_grad()
                value = model(**batch).loss if loss is None else loss(model, batch)
                figure = float(value.detach())
                if not math.isfinite(figure):
                    raise DivergenceError(
                        f"the loss is {figure} while the head is trained alone; accepted: a smaller "
                        "head_learning_rate, or head_epochs = 0"
                    )
                value.backward()
                optimizer.step()
                schedule.step()
    finally:
        for parameter, was in before:
            parameter.requires_grad = was
            parameter.grad = None
        for module, mode in modes:
            module.training = mode
