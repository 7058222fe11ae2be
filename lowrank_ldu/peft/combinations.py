"""Combine several adapters of a model under PEFT.

They are added up to a weighted sum, or each row of a batch uses an adapter of its own.
"""

from __future__ import annotations

import math
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

from peft.utils import AuxiliaryTrainingWrapper, ModulesToSaveWrapper

from lowrank_ldu.nn.host import hosts
from lowrank_ldu.peft.layer import LolduLayer
from lowrank_ldu.validation import check_choice, check_names, shown

if TYPE_CHECKING:
    from collections.abc import Iterator

    from peft.tuners.tuners_utils import BaseTuner
    from torch import nn

_BASE = "__base__"
# LoRA's names for ways to add adapters up. In LoRA "cat" and "svd" are exact; here all three are the same exact sum.
_SUMS = ("linear", "svd", "cat")


def check_weighted(tuner: BaseTuner, adapters: list[str], weights: list[float], combination_type: str) -> None:
    """Check the arguments of a weighted sum of adapters.

    Parameters
    ----------
    tuner : BaseTuner
        The model with the adapters.
    adapters : list of str
    weights : list of float
        One for each adapter.
    combination_type : str
        One of LoRA's names, which all mean the exact sum.

    Raises
    ------
    TypeError, ValueError
        An argument is of another type than it should be, an adapter does not exist, numbers differ, another combination
        is asked for, adapters trained the same module whole, or in some layer they do not share their factors.
    """
    check_names(adapters, "adapters", "a list of names of adapters")
    if not _are_numbers(weights):
        raise TypeError(f"weights is {shown(weights)}; accepted: a list of finite numbers, one for each adapter")
    missing = [name for name in adapters if name not in tuner.peft_config]
    if missing or not adapters:
        raise ValueError(f"Adapter {', '.join(missing) or adapters!r} does not exist")
    if len(adapters) != len(weights):
        raise ValueError(f"{len(adapters)} adapters and {len(weights)} weights; accepted: as many of each")
    check_choice(combination_type, "combination_type", _SUMS)
    # Some may be alone in a layer, where the sum has the options of the first.
    kinds = {replace(tuner.peft_config[name].options, rank=None).factors for name in adapters}
    if len(kinds) > 1:
        raise ValueError(
            f"adapters {adapters} have different kinds of factors, which no single adapter has; accepted: equal basis, "
            "core, block_size, parametrization, pivoting and seed"
        )
    wrappers = [module for module in tuner.modules() if isinstance(module, ModulesToSaveWrapper)]
    shared = sum(sum(name in wrapper.modules_to_save for name in adapters) > 1 for wrapper in wrappers)
    if shared:
        raise ValueError(
            "Cannot add weighted adapters if they target the same module with modules_to_save, but found "
            f"{shared} such instance(s)."
        )
    for key, layer in hosts(tuner.model):
        if not isinstance(layer, LolduLayer):
            continue
        if len({layer.loldu_factors.key_of[name] for name in adapters if name in layer.loldu_adapter}) > 1:
            raise ValueError(
                f"layer {key!r}: adapters {adapters} do not share their factors, so that no core is their sum; "
                "accepted: adapters of equal rank, basis, core, parametrization, pivoting and pivots"
            )


def _are_numbers(weights: Any) -> bool:
    try:
        return all(math.isfinite(weight) for weight in weights)
    except (TypeError, ValueError, OverflowError):
        return False


def set_weighted(layer: LolduLayer, weights: dict[str, float], adapter_name: str) -> None:
    """Give an adapter of a layer the weighted sum of others.

    It stays as it is where the layer has none of them.

    Parameters
    ----------
    layer : LolduLayer
    weights : dict of str to float
        Weight of each adapter in the sum. Those of the layer share their factors.
    adapter_name : str
        The adapter of the layer that is set.
    """
    present = {name: weight for name, weight in weights.items() if name in layer.loldu_adapter}
    if not present:
        return
    # The sum is expressed in the factors of its summands.
    layer.loldu_factors.share(adapter_name, next(iter(present)))
    layer.adapter(adapter_name).start_from(layer.loldu_factors.of(adapter_name))
    _, adapter, factors = layer.held(adapter_name)
    deltas = [weight * layer.held(name).delta for name, weight in present.items()]
    adapter.set_delta(sum(deltas[1:], deltas[0]), factors)


def union_of_targets(targets: list[set[str] | str]) -> set[str] | str:
    """Return the target modules of several adapters together.

    Parameters
    ----------
    targets : list of set of str, or of str
        Names of modules, or a regular expression, for each adapter.

    Raises
    ------
    ValueError
        Some are names and others are patterns.

    Examples
    --------
    >>> union_of_targets(["query", "value", "query"])
    '(query)|(value)'
    """
    if all(isinstance(target, str) for target in targets):
        return "|".join(f"({target})" for target in dict.fromkeys(targets))
    if any(isinstance(target, str) for target in targets):
        raise ValueError("target_modules of the adapters are names and patterns; accepted: all names, or all patterns")
    return set().union(*targets)


@contextmanager
def adapters_by_row(model: nn.Module, names: list[str]) -> Iterator[None]:
    """Use one adapter for each row of a batch during the block.

    Parameters
    ----------
    model : nn.Module
        The model inside of PEFT's, with adapted layers.
    names : list of str
        Adapter of each row; "__base__" for rows without one.

    Raises
    ------
    TypeError, ValueError
        `names` is no list or tuple, or an adapter does not exist.
    """
    adapted = list(_adapted_modules(model))
    _check_adapter_names(names, adapted)
    # Rows of everything but the encoder of an encoder-decoder model; `generate` repeats them in place.
    repeated = list(names)
    encoder = _encoder_modules(model)
    handles = []
    try:
        for module in adapted:
            rows = names if module in encoder else repeated
            hook = partial(_add_adapter_names, adapter_names=rows)
            handles.append(module.register_forward_pre_hook(hook, with_kwargs=True))
        with _repeated_with_rows(model, names, repeated):
            yield
    finally:
        for handle in handles:
            handle.remove()


def _check_adapter_names(names: list[str], adapted: list[nn.Module]) -> None:
    if not isinstance(names, list | tuple):
        raise TypeError(f"Got adapter names of type {type(names)}, expected a list of str.")
    known = {name for layer in adapted if isinstance(layer, LolduLayer) for name in layer.loldu_adapter}
    unknown = sorted(set(names) - known - {_BASE})
    if unknown:
        raise ValueError(f"Trying to infer with non-existing adapter(s): {', '.join(unknown)}")


def _adapted_modules(model: nn.Module) -> Iterator[nn.Module]:
    """Yield the modules that take `adapter_names`.

    The adapters of a layer are not visited: there may be thousands.
    """
    for child in model.children():
        if isinstance(child, LolduLayer | AuxiliaryTrainingWrapper):
            yield child
        if not isinstance(child, LolduLayer):
            yield from _adapted_modules(child)


def _encoder_modules(model: nn.Module) -> set[nn.Module]:
    encoder = model.get_encoder() if hasattr(model, "get_encoder") else None  # type: ignore[operator]
    # In transformers 5 a model without an encoder answers with itself.
    return set() if encoder is None or encoder is model else set(encoder.modules())


@contextmanager
def _repeated_with_rows(model: nn.Module, names: list[str], repeated: list[str]) -> Iterator[None]:
    """Repeat names whenever `generate` repeats rows.

    It does so for beams or return sequences of any configuration.
    """
    expand = getattr(model, "_expand_inputs_for_generation", None)
    if expand is None:
        yield
        return

    def expand_names_too(expand_size: int = 1, *args: Any, **kwargs: Any) -> Any:
        repeated[:] = [name for name in names for _ in range(expand_size)]
        return expand(expand_size, *args, **kwargs)

    own = vars(model).get("_expand_inputs_for_generation")
    vars(model)["_expand_inputs_for_generation"] = expand_names_too
    try:
        yield
    finally:
        if own is None:
            del vars(model)["_expand_inputs_for_generation"]
        else:
            vars(model)["_expand_inputs_for_generation"] = own


def _add_adapter_names(_: nn.Module, args: Any, kwargs: dict[str, Any], adapter_names: list[str]) -> tuple[Any, Any]:
    return args, {**kwargs, "adapter_names": adapter_names}
