"""Find the modules of a model that a method trains, and group them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from torch import nn

from lowrank_ldu.errors import OptionError
from lowrank_ldu.nn.injection import ALL_LINEAR, ends_with, target_tests, what_matches
from lowrank_ldu.nn.quantized import is_quantized
from lowrank_ldu.nn.weights import weight_matrix
from lowrank_ldu.validation import check_names

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

_PEFT = "base_model.model."


class AdaptedLayer(NamedTuple):
    """Hold the size of a layer that a method adapts.

    Attributes
    ----------
    name : str
        Qualified, in the plain model.
    rows, columns : int
        m and n of its weight as a matrix (m, n): outputs and inputs of a linear layer.
    has_bias : bool
    is_quantized : bool
        Whether the weight is stored quantized.
    """

    name: str
    rows: int
    columns: int
    has_bias: bool
    is_quantized: bool

    @classmethod
    def of(cls, name: str, base: nn.Module) -> AdaptedLayer:
        """Return the size of a base layer."""
        if isinstance(base, nn.Linear):  # quantized ones are, too, whose weight need not be read
            rows, columns = base.out_features, base.in_features
        else:
            rows, columns = weight_matrix(base).shape
        return cls(plain_name(name), rows, columns, getattr(base, "bias", None) is not None, is_quantized(base))


def plain_name(name: str) -> str:
    """Return a name in the plain model, without PEFT's prefix."""
    return name.removeprefix(_PEFT)


def whole_modules(model: nn.Module, names: Sequence[str]) -> tuple[str, ...]:
    """Return the qualified names of modules that are trained whole.

    Parameters
    ----------
    model : nn.Module
    names : sequence of str
        Names, or ends of names.

    Raises
    ------
    OptionError
        A name matches no module with parameters.
    """
    places = [name for name, module in model.named_modules() if name and any(True for _ in module.parameters())]
    found: list[str] = []
    for wanted in check_names(names, "trained_whole", "names of modules"):
        matches = [name for name in places if ends_with(wanted, name)]
        if not matches:
            raise OptionError(f"trained_whole has {wanted!r}, which matches no module; {what_matches(wanted, places)}")
        found += matches
    return tuple(dict.fromkeys(found))


def check_targets(model: nn.Module, targets: Sequence[str] | str, whole: Sequence[str]) -> None:
    """Refuse targets that match nothing, or what is trained whole.

    Raises
    ------
    OptionError
        The message names the target, and layers of the model that come close.
    """
    places = [name for name, _ in model.named_modules() if name]
    layers = [name for name in places if not any(True for _ in model.get_submodule(name).children())]
    if isinstance(targets, str) and targets == ALL_LINEAR:
        return
    try:
        tests = target_tests(targets)
    except (TypeError, ValueError) as error:
        raise OptionError(str(error)) from error
    for target, test in tests.items():
        matches = [name for name in places if test(name)]
        if not matches:
            raise OptionError(f"target {target!r} matches no module; {what_matches(target, layers)}, or {ALL_LINEAR!r}")
        both = next((name for name in matches if f"{name}.".startswith(tuple(f"{each}." for each in whole))), None)
        if both is not None:
            raise OptionError(
                f"target {target!r} matches {both!r}, which is trained whole; accepted: targets outside of it"
            )


def linear_targets(model: nn.Module, targets: Sequence[str] | str, whole: Sequence[str]) -> list[str]:
    """Return the names of the linear layers that targets match.

    "all-linear" leaves out what is trained whole, and the model's output layer, as PEFT does.

    Raises
    ------
    OptionError
        Nothing is matched, or what is matched is no linear layer.
    """
    from lowrank_ldu.fitting import target_layers  # noqa: PLC0415  # few methods need it

    check_targets(model, targets, whole)
    try:
        layers = target_layers(model, targets)
    except (TypeError, ValueError) as error:
        raise OptionError(str(error)) from error
    if isinstance(targets, str) and targets == ALL_LINEAR:
        output = getattr(model, "get_output_embeddings", lambda: None)()
        heads = tuple(f"{name}." for name in whole)
        layers = [layer for layer in layers if layer.base is not output and not f"{layer.name}.".startswith(heads)]
    return [layer.name for layer in layers]


def biases(model: nn.Module, whole: Sequence[str]) -> dict[str, nn.Parameter]:
    """Return the biases of a model outside of what is trained whole."""
    heads = tuple(f"{name}." for name in whole)
    return {
        name: parameter
        for name, parameter in model.named_parameters()
        if ends_with("bias", name) and not f"{name}.".startswith(heads)
    }


def train_only(model: nn.Module, parameters: Iterable[nn.Parameter], whole: Sequence[str]) -> None:
    """Freeze a model but for parameters and modules trained whole."""
    model.requires_grad_(requires_grad=False)
    for parameter in parameters:
        parameter.requires_grad = True
    for name in whole:
        model.get_submodule(name).requires_grad_(requires_grad=True)


def groups_of(name: str, parameters: Iterable[nn.Parameter], lr: float, weight_decay: float) -> list[dict[str, Any]]:
    """Return an optimizer's groups of matrices, which decay, and of vectors."""
    every = list(parameters)
    vectors = [parameter for parameter in every if parameter.numel() == max(parameter.shape, default=1)]
    own = {id(parameter) for parameter in vectors}
    matrices = [parameter for parameter in every if id(parameter) not in own]
    groups = [
        {"name": name, "params": matrices, "lr": lr, "weight_decay": weight_decay},
        {"name": f"{name} vectors", "params": vectors, "lr": lr, "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]
