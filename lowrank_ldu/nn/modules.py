"""Find modules of a model by name, inside of wrappers and layers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel

if TYPE_CHECKING:
    from torch import Tensor
    from torch.fx import Proxy

# Names of the module inside of torch.compile's, checkpoint_wrapper's and FSDP's; the first two may wrap one layer.
LAYER_WRAPPED = ("_orig_mod", "_checkpoint_wrapped_module")
_WRAPPED = (*LAYER_WRAPPED, "_fsdp_wrapped_module")
_NOTHING = nn.Module()
_WRAPPERS = (nn.parallel.DistributedDataParallel, nn.DataParallel, AveragedModel)


def check_model(model: object) -> None:
    """Raise TypeError unless `model` is a module."""
    if not isinstance(model, nn.Module):
        raise TypeError(f"model is a {type(model).__name__}; accepted: a torch.nn.Module")


def set_trainable(parameter: nn.Parameter, trainable: bool) -> None:
    """Set requires_grad of a parameter, in whatever mode it was made.

    One of inference mode can be made trainable again in that alone.
    """
    if parameter.requires_grad != trainable:
        with torch.inference_mode(mode=parameter.is_inference()):
            parameter.requires_grad = trainable


def plain_name(name: str, model: nn.Module) -> str:
    """Return a qualified name without the parts of wrappers.

    Wrappers of modules put such parts into the names of a model.

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
    """Return a submodule, from inside of wrappers if need be.

    Where there is none of the name, it is a module without any submodules.
    """
    if name not in module._modules:  # noqa: SLF001
        module = unwrapped(module)
    child = module._modules.get(name)  # noqa: SLF001
    return _NOTHING if child is None else child


def places(model: nn.Module) -> dict[nn.Module, list[str]]:
    """Return the names of every module, one for each place.

    A place is one that has to be written to replace the module. A module that stands twice gives the modules inside of
    it second names, which are no further places.

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
        for key, child in parent._modules.items():  # noqa: SLF001  # named_children() leaves out repetitions
            if child is not None:
                found.setdefault(child, []).append(f"{name}.{key}" if name else key)
    return found


def plain_submodule(model: nn.Module, name: str) -> nn.Module:
    """Return the module of a qualified name in the plain model.

    The plain model is the model without wrappers.

    Raises
    ------
    AttributeError
    """
    module = unwrapped(model)
    for part in name.split("."):
        module = unwrapped(module.get_submodule(part))
    return module


def unwrapped(model: nn.Module) -> nn.Module:
    """Return the model inside of wrappers of a whole model.

    torch.compile, DistributedDataParallel and similar make such wrappers.
    """
    while True:
        inner = next((model._modules[key] for key in _WRAPPED if key in model._modules), None)  # noqa: SLF001
        if isinstance(model, _WRAPPERS):
            inner = model.module
        if not isinstance(inner, nn.Module):
            return model
        model = inner


def innermost(layer: Any) -> nn.Module:
    """Return the base layer below the layers of other methods.

    It is the module that is adapted.
    """
    while "base_layer" in layer._modules:  # noqa: SLF001
        layer = layer.base_layer
    return layer  # type: ignore[no-any-return]


def check_not_distributed(model: nn.Module) -> None:
    """Refuse a model whose wrapper would miss new parameters.

    A wrapper averages gradients only of the parameters that it knows.

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
    """Return whether fully_shard has divided a module's parameters.

    The module then holds only its own part of them.
    """
    return any(hasattr(parameter, "full_tensor") for parameter in module.parameters())


def recorded_call(layer: nn.Module, x: Proxy, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
    """Record the call of a layer as one node of torch.fx's graph.

    The layer's work depends on the values of its input, which are not known yet.

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
