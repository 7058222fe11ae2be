"""Count, check, save and load the numbers that are trained."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING

import torch
from safetensors.torch import load_file, save_file

from lowrank_ldu.errors import RunDirectoryError, TrainingError
from lowrank_ldu.finetuning.sharding import any_process, local_part, whole

if TYPE_CHECKING:
    from pathlib import Path

    from lowrank_ldu.finetuning.methods import Prepared

_NUMBERS = "trained.safetensors"
# What a method needs beside the numbers, to go on.
_STATE = "method.pt"
_SHOWN = 5


def save_trained(prepared: Prepared, folder: Path, *, writes: bool = True) -> None:
    """Write the trained parameters as they are, and the method's state.

    An adapter's file may hold less: AdaLoRA's leaves out what its ranks exclude at the moment, and may include again.

    Parameters
    ----------
    prepared : Prepared
    folder : pathlib.Path
    writes : bool
        Whether this process writes. Where the parameters are sharded, all processes have to come here.
    """
    with whole(prepared):
        if writes:
            numbers = {name: each.detach().cpu().contiguous() for name, each in prepared.trained().items()}
            save_file(numbers, folder / _NUMBERS)
            torch.save(prepared.state_dict(), folder / _STATE)


def load_trained(prepared: Prepared, folder: Path) -> None:
    """Read what `save_trained` wrote, into parameters of the same names.

    Where these are sharded, all processes have to come here.

    Parameters
    ----------
    prepared : Prepared
    folder : pathlib.Path

    Raises
    ------
    RunDirectoryError
        The folder has parameters of other names or sizes.
    """
    with whole(prepared, written=True):
        numbers, parameters = load_file(folder / _NUMBERS), prepared.trained()
        shapes = [{name: tuple(each.shape) for name, each in found.items()} for found in (numbers, parameters)]
        for name in sorted({*numbers, *parameters}):
            saved, needed = (found.get(name) for found in shapes)
            if saved != needed:
                raise RunDirectoryError(f"{folder / _NUMBERS}: {name} has shape {saved}; accepted: {needed}")
        with torch.no_grad():
            for name, parameter in parameters.items():
                parameter.copy_(numbers[name])
    prepared.load_state_dict(torch.load(folder / _STATE, map_location="cpu", weights_only=True))


def refuse_unconnected(prepared: Prepared) -> None:
    """Refuse a group of parameters that the loss does not depend on.

    Parameters
    ----------
    prepared : Prepared
        After the first backward pass.

    Raises
    ------
    TrainingError
        The message names the group.
    """
    trained = prepared.trained()
    found = any_process([each.grad is not None for each in trained.values()], [*trained.values()])
    refuse_still(prepared, {name for name, has in zip(trained, found, strict=True) if not has})


def refuse_still(prepared: Prepared, still: set[str], *, steps: int | None = None) -> None:
    """Refuse a group of parameters that had no gradient.

    Parameters
    ----------
    prepared : Prepared
    still : set of str
        Names of the parameters that had none.
    steps : int, optional
        Number of steps that they had none in; single ones are warned of then.

    Raises
    ------
    TrainingError
        The message names the group.
    """
    names = {id(parameter): name for name, parameter in prepared.model.named_parameters()}
    for group in prepared.parameter_groups(1.0, head_lr=None, weight_decay=0.0):
        of_group = [names[id(each)] for each in group["params"]]
        if of_group and still.issuperset(of_group):
            raise TrainingError(
                f"no parameter of group {group.get('name', 'without a name')!r} has a gradient, {of_group[0]} neither; "
                "accepted: target_modules that the loss depends on"
            )
    if steps is not None and still:
        more = f" and {len(still) - _SHOWN} more" if len(still) > _SHOWN else ""
        warnings.warn(f"no gradient in {steps} steps: {', '.join(sorted(still)[:_SHOWN])}{more}", stacklevel=2)


def without_gradient(prepared: Prepared) -> set[str]:
    """Return the names of trained parameters without a gradient.

    A sharded one has it where any process has some of it.
    """
    trained = prepared.trained()
    own = [each.grad is not None and bool(local_part(each.grad).any()) for each in trained.values()]
    found = any_process(own, [*trained.values()])
    return {name for name, has in zip(trained, found, strict=True) if not has}


def check_numbers(prepared: Prepared) -> tuple[int, int]:
    """Count what is trained, and compare it with the method's own figure.

    Parameters
    ----------
    prepared : Prepared

    Returns
    -------
    tuple of int
        Trained numbers of the method, and of the modules that are trained whole, such as the head.

    Raises
    ------
    TrainingError
        The method trains more or fewer numbers than it says.
    """
    own = prepared.trained_numbers
    whole = sum(parameter.numel() for parameter in prepared.trained().values()) - own
    if own != prepared.expected_numbers:
        raise TrainingError(
            f"{own} numbers are trained beside {', '.join(prepared.whole) or 'no other module'}; accepted: "
            f"{prepared.expected_numbers}, by the method's own formula"
        )
    return own, whole
