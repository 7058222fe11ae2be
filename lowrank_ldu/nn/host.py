"""What the standalone layer and the PEFT layer have in common: a base layer with adapters on it."""

from __future__ import annotations

from abc import abstractmethod
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel

from lowrank_ldu.kernels.torch_modes import is_exporting
from lowrank_ldu.nn.kinds import kind_of
from lowrank_ldu.nn.kinds.own_forward import refresh_weight
from lowrank_ldu.nn.memory import Owners
from lowrank_ldu.nn.offloading import onloaded
from lowrank_ldu.nn.quantized import dense_weight

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import Tensor
    from torch.fx import Proxy

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


class Seen:
    """Whether something has been called; shallow copies of a module share it."""

    __slots__ = ("seen",)

    def __init__(self) -> None:
        self.seen = False

    def note(self) -> None:
        """Note a call; not one that torch.export makes to record a graph, which has no place for it."""
        if not is_exporting():
            self.seen = True


class AdapterHost:
    """A module that holds LoLDU adapters of one base layer; what optimisation, counting and saving ask for.

    Attributes it lacks are those of its base layer: `weight`, `bias`, sizes, and whatever else a model looks at.

    Attributes
    ----------
    plan : str
        How the layer computes, one of `lowrank_ldu.kernels.PLANS`.
    called : Seen
        Whether the layer has been called.
    warned : bool
        Whether it was said that it has not.
    weight_read : Seen
        Whether the weight has been looked at through the layer.
    reader : str or None
        The method of the model that reads the weight on one of its paths, and calls the layer on another.
    sharers : tuple of nn.Module
        Modules that used the base layer's weight, too, when the adapter was made.
    """

    plan: Plan = "auto"
    called: Seen = Seen()
    weight_read: Seen = Seen()
    reader: str | None = None
    warned: bool = False
    sharers: tuple[nn.Module, ...] = ()

    @abstractmethod
    def diagonals(self) -> Iterator[Diagonal]:
        """Yield the adapters of the layer."""

    @property
    def weight(self) -> Any:
        """The base layer's weight."""
        self.weight_read.seen = True
        return self.__dict__["_modules"]["base_layer"].weight

    def __getattr__(self, name: str) -> Any:
        """Return a submodule, as nn.Module does, or what the layer itself lacks from its base layer."""
        modules = self.__dict__.get("_modules", {})
        if name in modules:
            return modules[name]
        try:
            return super().__getattr__(name)  # type: ignore[misc]  # nn.Module's, the next class
        except AttributeError:
            # What begins with an underscore belongs to the one module: flags and hooks of libraries, ways to copy it.
            if name.startswith("_") or "base_layer" not in modules or not hasattr(modules["base_layer"], name):
                raise
            return getattr(modules["base_layer"], name)

    def __setattr__(self, name: str, value: Any) -> None:
        """Set an attribute; `weight` and `bias` are the base layer's.

        Raises
        ------
        RuntimeError
            The weight is another one than the adapter's factors are of.
        """
        base_layer = self.__dict__.get("_modules", {}).get("base_layer")
        if name not in {"weight", "bias"} or base_layer is None:
            super().__setattr__(name, value)
        elif name == "bias":
            base_layer.bias = value
        elif base_layer.weight is not value:
            raise RuntimeError(
                "weight is another tensor than the one that the layer's adapter was made on; accepted: the same one, "
                "or to set base_layer.weight and make the adapter anew"
            )


# What torch.compile, checkpoint_wrapper and FSDP call the module that they wrap; the first two may wrap one layer.
LAYER_WRAPPED = ("_orig_mod", "_checkpoint_wrapped_module")
_WRAPPED = (*LAYER_WRAPPED, "_fsdp_wrapped_module")
_NOTHING = nn.Module()
_WRAPPERS = (nn.parallel.DistributedDataParallel, nn.DataParallel, AveragedModel)


def check_model(model: object) -> None:
    """Raise TypeError unless `model` is a module."""
    if not isinstance(model, nn.Module):
        raise TypeError(f"model is a {type(model).__name__}; accepted: a torch.nn.Module")


def stored_weight(base_layer: nn.Module) -> nn.Parameter:
    """Return a layer's weight as it is stored."""
    # HQQ's layers have no `weight`, but for the packed integers.
    return base_layer.weight if hasattr(base_layer, "weight") else base_layer.W_q  # type: ignore[return-value]


def weight_matrix(base_layer: nn.Module) -> Tensor:
    """Return a layer's weight as W (m, n), dequantised where it is stored quantised, in memory if it is offloaded.

    Raises
    ------
    TypeError
        The layer or its weight is of a kind that cannot be factored.
    """
    kind = kind_of(base_layer)
    with onloaded(base_layer):
        with torch.no_grad():
            refresh_weight(base_layer)
        return kind.as_matrix(dense_weight(base_layer))


class MergedWeight(NamedTuple):
    """What tells whether a merged weight is still as merging left it: sums of its bits, by row and by column.

    Every entry counts, however it was written to, and no copy of the weight is kept for it.
    """

    dtype: torch.dtype
    sums: tuple[Tensor, ...]

    @classmethod
    def of(cls, weight: Tensor) -> MergedWeight:
        """Sum up a weight."""
        integers = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[weight.dtype.itemsize]
        bits = weight.detach().flatten(1).contiguous().view(integers)
        return cls(weight.dtype, tuple(bits.sum(axis, dtype=torch.int64) for axis in (0, 1)))

    def check(self, weight: Tensor) -> None:
        """Refuse a weight of the same dtype with other entries, which unmerging would lose.

        Raises
        ------
        RuntimeError
        """
        if weight.dtype != self.dtype or weight.device.type == "meta":
            return  # cast or moved away since: what is put back is cast as well
        present = MergedWeight.of(weight).sums
        if not all(torch.equal(now, then.to(now.device)) for now, then in zip(present, self.sums, strict=True)):
            raise RuntimeError(
                "the merged weight has been changed since it was merged, which putting the base back would lose; "
                "accepted: the weight as merging left it"
            )


def plain_name(name: str, model: nn.Module) -> str:
    """Return a qualified name in a model without what wrappers of modules put into it.

    Parameters
    ----------
    name : str
        Of a module, or of a tensor in a state dict, which may have been left out of it already.
    model : nn.Module

    Examples
    --------
    >>> plain_name("0.module.1.weight", nn.Sequential(nn.DataParallel(nn.Sequential(nn.ReLU(), nn.Linear(1, 1)))))
    '0.1.weight'
    """
    parts, module = [], model
    for part in name.split("."):
        if part not in _WRAPPED and not (part == "module" and isinstance(module, _WRAPPERS)):
            parts.append(part)
        module = _child(module, part)
    return ".".join(parts)


def _child(module: nn.Module, name: str) -> nn.Module:
    """Return a submodule, from inside of wrappers if need be; of what has none of the name, a module without any."""
    if name not in module._modules:  # noqa: SLF001
        module = unwrapped(module)
    child = module._modules.get(name)  # noqa: SLF001
    return _NOTHING if child is None else child


def places(model: nn.Module) -> dict[nn.Module, list[str]]:
    """Return the names of every module, one for each place that has to be written to replace it.

    The second name of what a module that itself stands twice has inside is no further place.

    Parameters
    ----------
    model : nn.Module

    Examples
    --------
    >>> layer = nn.Linear(1, 1)
    >>> places(nn.Sequential(layer, layer))[layer]
    ['0', '1']
    """
    found: dict[nn.Module, list[str]] = {}
    for name, parent in model.named_modules():
        for key, child in parent._modules.items():  # noqa: SLF001  # named_children() leaves out what it has seen
            if child is not None:
                found.setdefault(child, []).append(f"{name}.{key}" if name else key)
    return found


def plain_submodule(model: nn.Module, name: str) -> nn.Module:
    """Return the module that has a qualified name in the plain model, without wrappers of it.

    Raises
    ------
    AttributeError
    """
    module = unwrapped(model)
    for part in name.split("."):
        module = unwrapped(module.get_submodule(part))
    return module


def unwrapped(model: nn.Module) -> nn.Module:
    """Return the model inside of torch.compile's, DistributedDataParallel's and similar wrappers of a whole model."""
    while True:
        inner = next((model._modules[key] for key in _WRAPPED if key in model._modules), None)  # noqa: SLF001
        if isinstance(model, _WRAPPERS):
            inner = model.module
        if not isinstance(inner, nn.Module):
            return model
        model = inner


def recorded_call(layer: nn.Module, x: Proxy, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
    """Record the call of a layer as one node of torch.fx's graph.

    What a layer does depends on the values of its input, which are not there yet.

    Raises
    ------
    RuntimeError
        The layer is all that is traced.
    """
    tracer: Any = x.tracer
    if layer is tracer.root:
        raise RuntimeError(
            f"torch.fx traces a {type(layer).__name__} by itself, whose forward depends on its input; accepted: a "
            "model with the layer inside, which becomes one node"
        )
    return tracer.create_proxy("call_module", tracer.path_of_module(layer), (x, *args), kwargs)  # type: ignore[no-any-return]


def check_not_distributed(model: nn.Module) -> None:
    """Refuse a model whose new parameters no wrapper would average gradients of.

    Raises
    ------
    ValueError
    """
    for name, module in model.named_modules():
        if isinstance(module, nn.parallel.DistributedDataParallel) or "_fsdp_wrapped_module" in module._modules:  # noqa: SLF001
            raise ValueError(
                f"{f'module {name!r}' if name else 'the model'} is wrapped by {type(module).__name__} already, which "
                "would not average the gradients of new parameters; accepted: the model inside, wrapped afterwards"
            )


def is_sharded(module: nn.Module) -> bool:
    """Whether fully_shard has left a module only its part of its parameters."""
    return any(hasattr(parameter, "full_tensor") for parameter in module.parameters())


def hosts(model: nn.Module) -> Iterator[tuple[str, AdapterHost]]:
    """Yield the qualified name and the module of every layer of `model` with LoLDU adapters, a shared one once."""
    check_model(model)
    for name, module in model.named_modules():
        if isinstance(module, AdapterHost):
            yield name, module


def tied_weights(model: nn.Module, base_layers: dict[str, nn.Module]) -> dict[str, list[str]]:
    """Return, for each of these layers whose weight other modules use too, the names of those modules.

    They have the same parameter, or another parameter or buffer in the same memory.

    Parameters
    ----------
    model : nn.Module
    base_layers : dict of str to nn.Module
        Qualified name of each layer with adapters to its base layer.
    """
    tied = {
        name: [owner or type(module).__name__ for owner, module in users if module is not base_layers[name]]
        for name, users in _users_of_weights(model, base_layers)
    }
    return {name: others for name, others in tied.items() if others}


def note_sharers(model: nn.Module) -> None:
    """Let every layer with adapters know which other modules use its weight, so that it is not merged on its own."""
    layers = {name: host for name, host in hosts(model) if "base_layer" in host._modules}  # noqa: SLF001
    bases = {name: innermost(host) for name, host in layers.items()}
    for name, users in _users_of_weights(model, bases):
        layers[name].sharers = tuple(module for _, module in users if module is not bases[name])


def innermost(layer: Any) -> nn.Module:
    """Return the module that is adapted, below the layers of other methods around it."""
    while "base_layer" in layer._modules:  # noqa: SLF001
        layer = layer.base_layer
    return layer  # type: ignore[no-any-return]


def _users_of_weights(
    model: nn.Module, base_layers: dict[str, nn.Module]
) -> Iterator[tuple[str, list[tuple[str, nn.Module]]]]:
    """Yield each layer's name with the names and modules of all that have some of its weight's memory."""
    owners = Owners(
        ((name, module), tensor)
        for name, module in model.named_modules()
        # The plain parameters() and buffers() leave out what they have seen.
        for tensor in (*module._parameters.values(), *module._buffers.values())  # noqa: SLF001
        if tensor is not None
    )
    for name, base_layer in base_layers.items():
        weight = stored_weight(base_layer)
        # What a parametrization computes may be a view of what it is computed from, which is no tie.
        own = any(weight is parameter for parameter in base_layer._parameters.values())  # noqa: SLF001
        yield name, list(dict.fromkeys(owners.of(weight))) if own else []
