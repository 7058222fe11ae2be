"""Find the layers of a model that something is fitted for.

They are its linear layers, adapted ones included.
"""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, NamedTuple

from lowrank_ldu.nn.host import AdapterHost
from lowrank_ldu.nn.injection import ALL_LINEAR, target_tests, what_matches
from lowrank_ldu.nn.kinds import is_linear, kind_of, supports
from lowrank_ldu.nn.kinds.own_forward import own_forward
from lowrank_ldu.nn.modules import check_model, innermost, is_sharded, plain_name
from lowrank_ldu.nn.weight_reads import reader_of
from lowrank_ldu.nn.weights import whole_matrix

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from torch import Tensor, nn

_ACCEPTED = f"a sequence of module names, a regular expression, or {ALL_LINEAR!r}"
_PEFT = "base_model.model."
_LINEAR_LAYERS = "nn.Linear (quantized, too) and transformers' Conv1D"


class TargetLayer(NamedTuple):
    """Hold a linear layer of a model.

    Attributes
    ----------
    name : str
        The qualified name at which the layer stands, or the outermost layer of other methods around it.
    called : nn.Module
        The module whose input and output are those of the base layer.
    base : nn.Module
        The layer with the weight.
    """

    name: str
    called: nn.Module
    base: nn.Module

    def weight(self) -> Tensor:
        """Return the weight W (m, n), dequantized and gathered."""
        return whole_matrix(self.base)

    @property
    def sharded(self) -> bool:
        """Return whether each process has a part of the weight."""
        return is_sharded(self.base)


def target_layers(model: nn.Module, targets: Sequence[str] | str) -> list[TargetLayer]:
    """Return the linear layers that targets match.

    Parameters
    ----------
    model : nn.Module
    targets : sequence of str, or str
        As for `lowrank_ldu.nn.inject`, but that layers may have adapters already. A layer that stands under several
        names comes once, under the first one.

    Returns
    -------
    list of TargetLayer
        In the model's order.

    Raises
    ------
    TypeError
        A target matches modules, but no linear layer among them whose weight is only used by its call.
    ValueError
        A target matches nothing; a layer has a forward of its own, so that its gradient is no product of its input and
        its output's gradient.
    """
    check_model(model)
    found, others = _linear_layers(model)
    if not found:
        raise ValueError(
            f"the model ({type(model).__name__}) holds no linear layer that is called; accepted: a model with "
            f"submodules of {_LINEAR_LAYERS}"
        )
    if isinstance(targets, str) and targets == ALL_LINEAR:
        return _checked(found, set(found))
    chosen: set[str] = set()
    for target, test in target_tests(targets).items():
        matches = {name for name in found if test(name)}
        wrong = [name for name in others if test(name)]
        if not matches and wrong:
            raise TypeError(f"target {target!r} matches {wrong[0]!r}, {others[wrong[0]]}; accepted: {_LINEAR_LAYERS}")
        if not matches:
            raise ValueError(f"target {target!r} matches no module; {what_matches(target, found)}, or {ALL_LINEAR!r}")
        chosen |= matches
    return _checked(found, chosen)


@contextmanager
def naming(layer: TargetLayer) -> Iterator[None]:
    """Name a layer in what the body of the `with` statement raises."""
    try:
        yield
    except (TypeError, ValueError) as error:
        raise type(error)(f"layer {layer.name!r}: {error}") from error


def _checked(found: dict[str, TargetLayer], chosen: set[str]) -> list[TargetLayer]:
    # By the first of its names, whichever matches: so inject names it.
    bases = {found[name].base for name in chosen}
    layers: dict[nn.Module, TargetLayer] = {}
    for layer in found.values():
        if layer.base not in bases or layer.base in layers:
            continue
        with naming(layer):
            kind_of(layer.base)
            if own_forward(layer.base):
                raise ValueError(
                    f"it is a {type(layer.base).__name__} with a forward of its own, whose gradient is not known from "
                    f"its input and output; accepted: {_LINEAR_LAYERS}"
                )
        layers[layer.base] = layer
    return list(layers.values())


def _linear_layers(model: nn.Module) -> tuple[dict[str, TargetLayer], dict[str, str]]:
    """Return linear layers by name, and what other modules are."""
    found: dict[str, TargetLayer] = {}
    others: dict[str, str] = {}
    for place, outer in _outermost(model):
        name, base = plain_name(place, model), innermost(outer)
        if hasattr(model, "peft_config"):
            name = name.removeprefix(_PEFT)  # the name in the model that PEFT was given
        reader = reader_of(model, place) if supports(base) else None
        if reader is not None:
            others[name] = f"whose weight {reader} reads without calling the layer"
        elif is_linear(base):
            found[name] = TargetLayer(name, _called(outer), base)
        else:
            others[name] = f"which is a {type(base).__name__}"
    return found, others


def _outermost(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Yield modules that are not inside of an adapted layer."""
    around: list[str] = []
    for name, module in model.named_modules(remove_duplicate=False):
        if not name or any(name.startswith(f"{layer}.") for layer in around):
            continue
        # PEFT's modules_to_save are trained whole, beside the original that is not called.
        if "base_layer" in module._modules or {"original_module", "modules_to_save"} <= set(module._modules):  # noqa: SLF001
            around.append(name)
        yield name, module


def _called(outer: nn.Module) -> nn.Module:
    """Return the module whose calls are the layer's.

    Layers of this package do not always call their base layer.
    """
    module = outer
    while "base_layer" in module._modules and not isinstance(module, AdapterHost):  # noqa: SLF001
        module = module.base_layer  # type: ignore[assignment]
    return module
