"""What the standalone layer and the PEFT layer have in common: a base layer with adapters on it."""

from __future__ import annotations

from abc import abstractmethod
from typing import TYPE_CHECKING, NamedTuple

from torch import nn
from torch.optim.swa_utils import AveragedModel

from lowrank_ldu.nn.kinds import kind_of
from lowrank_ldu.nn.quantized import dense_weight

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import Tensor

    from lowrank_ldu.kernels import Plan
    from lowrank_ldu.nn.diagonal import DiagonalAdapter
    from lowrank_ldu.nn.factors import Factors


class Diagonal(NamedTuple):
    """One adapter of a layer, with the factors that it is expressed in."""

    name: str
    adapter: DiagonalAdapter
    factors: Factors

    @property
    def delta(self) -> Tensor:
        """Difference sigma z - sigma_0 z_ref, shape (r,)."""
        return self.adapter.delta(self.factors)


class AdapterHost:
    """A module that holds LoLDU adapters of one base layer; what optimisation, counting and saving ask for.

    Attributes
    ----------
    plan : str
        How the layer computes, one of `lowrank_ldu.kernels.PLANS`.
    """

    plan: Plan = "auto"

    @abstractmethod
    def diagonals(self) -> Iterator[Diagonal]:
        """Yield the adapters of the layer."""


# What torch.compile, checkpoint_wrapper and FSDP call the module that they wrap.
_WRAPPED = ("_orig_mod", "_checkpoint_wrapped_module", "_fsdp_wrapped_module")
_WRAPPERS = (nn.parallel.DistributedDataParallel, nn.DataParallel, AveragedModel)


def stored_weight(base_layer: nn.Module) -> nn.Parameter:
    """Return a layer's weight as it is stored."""
    # HQQ's layers have no `weight`, but for the packed integers.
    return base_layer.weight if hasattr(base_layer, "weight") else base_layer.W_q  # type: ignore[return-value]


def weight_matrix(base_layer: nn.Module) -> Tensor:
    """Return a layer's weight as W (m, n), dequantised where it is stored quantised.

    Raises
    ------
    TypeError
        The layer or its weight is of a kind that cannot be factored.
    """
    return kind_of(base_layer).as_matrix(dense_weight(base_layer))


def plain_name(name: str) -> str:
    """Return a module's qualified name without what wrappers of modules put into it.

    Examples
    --------
    >>> plain_name("layers.0._checkpoint_wrapped_module.query")
    'layers.0.query'
    """
    return ".".join(part for part in name.split(".") if part not in _WRAPPED)


def unwrapped(model: nn.Module) -> nn.Module:
    """Return the model inside of torch.compile's, DistributedDataParallel's and similar wrappers of a whole model."""
    while True:
        inner = next((model._modules[key] for key in _WRAPPED if key in model._modules), None)  # noqa: SLF001
        if isinstance(model, _WRAPPERS):
            inner = model.module
        if not isinstance(inner, nn.Module):
            return model
        model = inner


def hosts(model: nn.Module) -> Iterator[tuple[str, AdapterHost]]:
    """Yield the qualified name and the module of every layer of `model` with LoLDU adapters, a shared one once."""
    for name, module in model.named_modules():
        if isinstance(module, AdapterHost):
            yield name, module


def tied_weights(model: nn.Module, base_layers: dict[str, nn.Module]) -> dict[str, list[str]]:
    """Return, for each of these layers whose weight other modules use too, the names of those modules.

    Parameters
    ----------
    model : nn.Module
    base_layers : dict of str to nn.Module
        Qualified name of each layer with adapters to its base layer.
    """
    owners: dict[int, list[tuple[str, nn.Module]]] = {}
    for name, module in model.named_modules():
        for parameter in module._parameters.values():  # noqa: SLF001  # parameters() leaves out what it has seen
            if parameter is not None:
                owners.setdefault(id(parameter), []).append((name, module))
    tied = {}
    for name, base_layer in base_layers.items():
        others = [owner for owner, module in owners.get(id(stored_weight(base_layer)), []) if module is not base_layer]
        if others:
            tied[name] = others
    return tied
