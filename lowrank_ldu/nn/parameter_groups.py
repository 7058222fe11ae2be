"""Group the trained parameters of a model for an optimizer."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from lowrank_ldu.nn.host import hosts
from lowrank_ldu.nn.modules import check_model
from lowrank_ldu.nn.plan import check_adapted
from lowrank_ldu.validation import check_positive, shown

if TYPE_CHECKING:
    from torch import nn

# Of AdamW. In coordinates of unit norm a step of one size changes the weight by as much whatever the rank, the core
# and the basis are; entries of the factorization's own diagonal have no common unit (docs/measurements.md).
UNIT_RATE, RAW_RATE = 2e-2, 3e-3


def parameter_groups(
    model: nn.Module, lr: float | None = None, *, other_lr: float = 1e-3, weight_decay: float = 0.0
) -> list[dict[str, Any]]:
    """Return a model's trained parameters in groups of one learning rate.

    Parameters
    ----------
    model : nn.Module
        With adapters of `inject`, of `LDULayer`, or of PEFT.
    lr : float, optional
        Learning rate of the cores. If not given, 2e-2 in coordinates of unit norm (parametrization "gram" or
        "normalized"), where one rate suits ranks, cores and bases alike, and 3e-3 for parametrization "diagonal".
    other_lr : float
        Of everything else that is trained: heads, norms, biases.
    weight_decay : float
        Of everything but cores and scales. Their decay would draw the update to zero, and is 0.

    Returns
    -------
    list of dict
        With "name", "params", "lr" and "weight_decay", as torch's optimizers take them. Groups without parameters are
        left out. The scales sigma have the rate of raw coordinates, or `lr` if that is smaller.

    Raises
    ------
    TypeError, ValueError
        A number is not accepted, model is no module, or it has no adapted layer, or trains no parameter.

    Examples
    --------
    >>> import torch
    >>> from lowrank_ldu.nn import inject
    >>> model = torch.nn.Sequential(torch.nn.Linear(8, 8), torch.nn.Linear(8, 2))
    >>> _ = inject(model, ["0"], rank=4, core="dense", parametrization="gram")
    >>> _ = model[1].requires_grad_(True)
    >>> for group in parameter_groups(model):
    ...     print(group["name"], len(group["params"]), group["lr"])
    unit coordinates 1 0.02
    scales 1 0.003
    others 2 0.001
    >>> optimizer = torch.optim.AdamW(parameter_groups(model))
    """
    check_model(model)
    given = None if lr is None else check_positive(lr, "lr")
    rates = {
        "unit coordinates": given or UNIT_RATE,
        "raw coordinates": given or RAW_RATE,
        "scales": min(given or RAW_RATE, RAW_RATE),
        "others": check_positive(other_lr, "other_lr"),
    }
    if isinstance(weight_decay, bool) or not isinstance(weight_decay, int | float) or not 0 <= weight_decay < 1:
        raise ValueError(f"weight_decay is {shown(weight_decay)}; accepted: a number from 0 to below 1")
    layers = dict(hosts(model))
    check_adapted(layers, model)
    places: dict[int, str] = {}
    for host in layers.values():
        for _, adapter, _ in host.held_adapters():
            raw = adapter.options.parametrization == "diagonal"
            places[id(adapter.offset)] = "raw coordinates" if raw else "unit coordinates"
            places[id(adapter.sigma)] = "scales"
    groups: dict[str, list[Any]] = {name: [] for name in rates}
    for parameter in model.parameters():
        if parameter.requires_grad:
            groups[places.get(id(parameter), "others")].append(parameter)
    if not any(groups.values()):
        raise ValueError(f"the model ({type(model).__name__}) trains no parameter; accepted: one that trains some")
    decay = {"others": float(weight_decay)}
    return [
        {"name": name, "params": parameters, "lr": rates[name], "weight_decay": decay.get(name, 0.0)}
        for name, parameters in groups.items()
        if parameters
    ]
