"""Put LoLDU adapters into a base model under PEFT."""

from __future__ import annotations

import copy
import re
import warnings
from contextlib import contextmanager
from dataclasses import replace
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import torch
from peft.tuners.tuners_utils import BaseTuner
from peft.utils import TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING
from peft.utils.other import AuxiliaryTrainingWrapper, get_pattern_key
from torch import nn

from lowrank_ldu.nn.calls import observe, unwatch, warn_of_passed_by
from lowrank_ldu.nn.host import hosts
from lowrank_ldu.nn.injection import call_replaced, check_limits, clipped_rank, outside_inference_mode, what_matches
from lowrank_ldu.nn.kinds import LinearKind, TransposedLinearKind, kind_of, lora_obstacle, supports
from lowrank_ldu.nn.modules import LAYER_WRAPPED, check_not_distributed, innermost, places, plain_name
from lowrank_ldu.nn.offloading import onloaded
from lowrank_ldu.nn.weight_reads import reader_of
from lowrank_ldu.nn.weights import check_untied
from lowrank_ldu.peft.combinations import adapters_by_row, check_weighted, set_weighted, union_of_targets
from lowrank_ldu.peft.layer import LolduLayer, LolduLinear
from lowrank_ldu.peft.registration import PREFIX
from lowrank_ldu.peft.unmatched import PEFT_ON_PATTERNS, warn_of_unmatched
from lowrank_ldu.validation import shown

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from lowrank_ldu.nn.kinds import LayerKind
    from lowrank_ldu.peft.config import LolduConfig
    from lowrank_ldu.peft.fits import Fit

_PEFT = "base_model.model."
_NO_TARGET = "not found in the base model"
_WAYS_OUT = "exclude_modules or rank_pattern for what is smaller, or clip_rank=True"


class LolduModel(BaseTuner):  # type: ignore[misc]  # peft has no types
    """Model with LoLDU adapters under PEFT.

    `peft.get_peft_model` makes it of a base model and a `LolduConfig`.

    Parameters
    ----------
    model : nn.Module
    config : LolduConfig
    adapter_name : str
    low_cpu_mem_usage : bool
        Leave the numbers on the meta device, to be loaded.

    Notes
    -----
    All adapters of a layer whose rank, basis and pivoting agree share their factors.
    """

    prefix: str = PREFIX
    tuner_layer_cls = LolduLayer
    # The paper adapts query and value, too.
    target_module_mapping = TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING
    # While an adapter is made: the names of each module that stands in several places.
    _repeated: Mapping[nn.Module, list[str]] = MappingProxyType({})
    # And what was fitted for its layers.
    _fit: Fit | None = None

    def _create_and_replace(  # noqa: PLR0917  # PEFT's signature
        self,
        peft_config: LolduConfig,
        adapter_name: str,
        target: nn.Module,
        target_name: str,
        parent: nn.Module,
        current_key: str,
        *,
        parameter_name: str | None = None,
    ) -> None:
        del parameter_name
        current_key = plain_name(current_key, self.model)
        if not isinstance(target, LolduLayer):
            self._check_stands_once(current_key, target)
        parent, target_name, target = _in_wrappers(parent, target_name, target)
        options = {
            "config": peft_config,
            "r": _for_layer(peft_config.rank_pattern, current_key, peft_config.r),
            "alpha": _for_layer(peft_config.alpha_pattern, current_key, peft_config.alpha),
        }
        if isinstance(target, LolduLayer):
            _describe(peft_config, current_key, target.get_base_layer(), target.kind)
            options |= self._own_rank(peft_config, current_key, target.get_base_layer(), options["r"])
            with self._small_layers_named(peft_config):
                target.update_layer(adapter_name, **options)
            return
        reader = reader_of(self.model, current_key)
        if reader is not None:
            raise ValueError(
                f"target module {current_key!r}: {reader} reads its weight past any adapter, without calling it; "
                "accepted: to leave it out with exclude_modules"
            )
        try:
            kind = kind_of(target)
        except (TypeError, ValueError) as error:
            # PEFT and its users expect ValueError for a target of another kind.
            raise ValueError(f"target module {current_key!r}: {error}") from error
        _describe(peft_config, current_key, target, kind)
        layer_cls = LolduLinear if kind.linear else LolduLayer
        options |= self._own_rank(peft_config, current_key, target, options["r"])
        with self._small_layers_named(peft_config):
            layer = layer_cls(target, adapter_name, name=current_key, **options)
        if adapter_name not in self.active_adapters:
            layer.requires_grad_(requires_grad=False)
        self._replace_module(parent, target_name, layer, target)

    def _own_rank(self, config: LolduConfig, key: str, base_layer: nn.Module, rank: int) -> dict[str, Any]:
        """Return a layer's rank, and what was fitted for it.

        A rank that is not the configuration's is written into it.
        """
        if self._fit is None:
            return {"r": _clipped(config, key, base_layer, rank) if config.clip_rank else rank}
        fit = self._fit.of(key, _for_layer(config.rank_pattern, key, None), config.r)
        _note_rank(config, key, fit.rank)
        return {"r": fit.rank, "fit": fit}

    def _check_stands_once(self, name: str, target: nn.Module) -> None:
        """Refuse a target that stands under a second name.

        PEFT would leave the plain layer there.
        """
        while True:
            second = next((place for place in self._repeated.get(target, ()) if place != name), None)
            if second is not None:
                raise ValueError(
                    f"target module {name!r} is the same module as {second!r}, which PEFT would leave without the "
                    "adapter; accepted: a module of its own in each place, or to leave it out with exclude_modules"
                )
            key = next((key for key in LAYER_WRAPPED if key in target._modules), None)  # noqa: SLF001
            if key is None:
                return
            target = target.get_submodule(key)

    def _replace_module(self, parent: nn.Module, child_name: str, new_module: nn.Module, child: nn.Module) -> None:
        if isinstance(child, AuxiliaryTrainingWrapper):
            # A head that was trained whole, which is put back; PEFT would look for the weight of one layer in it.
            setattr(parent, child_name, new_module)
            return
        # PEFT puts an adapter where the weight is: in memory, while it is there.
        with onloaded(innermost(child)):
            super()._replace_module(parent, child_name, new_module, child)
        call_replaced(parent)

    @classmethod
    def _get_adapter_state_dict(
        cls, model: nn.Module, config: LolduConfig, *, state_dict: dict[str, Any], **_: Any
    ) -> dict[str, Any]:
        """Return the tensors of an adapter that a file holds.

        Their names are those of the plain model, without wrappers.
        """
        plain = {plain_name(key, model): value for key, value in state_dict.items()}
        layers = list(_adapted_names(model))
        prefixes = tuple(f"{layer}{PREFIX}adapter." for layer in layers)
        biases = {f"{layer}base_layer.bias" for layer in layers} if config.bias != "none" else set()
        if config.bias == "all":
            biases |= {key for key in plain if f".{key}".endswith(".bias")}
        return {key: value for key, value in plain.items() if key.startswith(prefixes) or key in biases}

    @classmethod
    def _remap_adapter_state_dict_for_load(
        cls, model: nn.Module, *, adapter_name: str, state_dict: dict[str, Any], **_: Any
    ) -> dict[str, Any]:
        """Return the tensors of a file by this model's names.

        The file holds an adapter under the plain model's names. This model's names include wrappers.
        """
        prefixes = tuple(f"{layer}{PREFIX}adapter.{adapter_name}." for layer in _adapted_names(model))
        keys = {plain_name(key, model): key for key in model.state_dict()}
        for plain, key in list(keys.items()):
            if plain.startswith(prefixes):
                stored = cls._remove_adapter_name_from_key(plain, adapter_name)
                # A model that holds the layers without PEFT's own around it has no prefix; the file has.
                keys[stored] = keys[f"{_PEFT}{stored.removeprefix(_PEFT)}"] = key
        return {keys.get(key, key): value for key, value in state_dict.items()}

    def _post_injection_hook(self, model: nn.Module, config: LolduConfig, adapter_name: str) -> None:
        super()._post_injection_hook(model, config, adapter_name)
        self.register_state_dict_pre_hook(_before_saving)

    def inject_adapter(self, model: nn.Module, adapter_name: str, *args: Any, **kwargs: Any) -> None:
        """Add an adapter to the layers that its configuration names.

        Raises
        ------
        ValueError
            The adapter's name is no name of a module; or a target, or the rank that it is to have, is not accepted.

        Warns
        -----
        UserWarning
            A name in the configuration matches nothing, so that it has no effect.
        """
        _check_adapter_name(adapter_name)
        check_not_distributed(model)
        config = self.peft_config[adapter_name]
        modules = [name for name, _ in model.named_modules() if name]
        self._repeated = _repeated_modules(model)
        targets_given = isinstance(config.target_modules, set)
        self._fit = config.fit()
        if config.clip_rank or self._fit is not None:
            # PEFT adds the heads of some tasks to the user's own configuration afterwards: both share the list.
            config.modules_to_save = list(config.modules_to_save or ())
            # The ranks of this model's layers are written into the copy: the user's own may adapt another model.
            config = self.peft_config[adapter_name] = copy.copy(config)
        try:
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", message=PEFT_ON_PATTERNS)
                with outside_inference_mode():
                    super().inject_adapter(model, adapter_name, *args, **kwargs)
        except ValueError as error:
            if _NO_TARGET not in str(error):
                raise
            targets = [config.target_modules] if isinstance(config.target_modules, str) else config.target_modules
            names = [name for name, module in model.named_modules() if supports(module)]
            raise type(error)(f"{error} Of {type(model).__name__}, {what_matches(min(targets), names)}.") from error
        finally:
            self._repeated, self._fit = {}, None
        observe(self.model)
        layers = [
            name
            for name, layer in hosts(model)
            if isinstance(layer, LolduLayer) and adapter_name in layer.loldu_adapter
        ]
        # There is no second warning where an adapter that was made before is loaded.
        if layers and not config.inference_mode and kwargs.get("state_dict") is None:
            warn_of_unmatched(config, modules, layers, targets_given=targets_given)

    def _cast_adapter_dtype(self, *args: Any, **kwargs: Any) -> None:
        with outside_inference_mode():
            super()._cast_adapter_dtype(*args, **kwargs)

    @contextmanager
    def _small_layers_named(self, config: LolduConfig) -> Iterator[None]:
        """Name all targets that are too small for their rank.

        PEFT meets only the first of them.
        """
        try:
            yield
        except ValueError:
            self.check_ranks(self.model, config)
            raise

    @classmethod
    def check_ranks(cls, model: nn.Module, config: LolduConfig) -> None:
        """Refuse targets that are too small for their rank, and name them all.

        Parameters
        ----------
        model : nn.Module
            Only its layers' sizes are looked at: it may be on the meta device.
        config : LolduConfig
            With target_modules.

        Raises
        ------
        ValueError
        """
        layers: dict[str, tuple[nn.Module, int | None]] = {}
        for place, module in model.named_modules():
            name, adapted = plain_name(place, model), isinstance(module, LolduLayer)
            inside = name.rpartition(".")[0] in layers  # the base layer of one
            if (adapted or supports(module)) and not inside and cls._check_target_module_exists(config, name):
                base = module.get_base_layer() if adapted else module
                layers[name] = base, _for_layer(config.rank_pattern, name, config.r)
        check_limits(layers, _WAYS_OUT)

    def _unload_and_optionally_merge(self, *args: Any, **kwargs: Any) -> nn.Module:
        model: nn.Module = super()._unload_and_optionally_merge(*args, **kwargs)
        unwatch(self.model)
        return model

    def _prepare_adapter_config(self, peft_config: LolduConfig, model_config: dict[str, Any]) -> LolduConfig:
        if peft_config.target_modules is None and self._fit is not None:
            peft_config.target_modules = self._fit.targets(self.model)
            if isinstance(peft_config.target_modules, str) and peft_config.layers_to_transform is not None:
                raise ValueError(
                    f"layers_to_transform is given, and names in {self._fit.source} match other modules, too; "
                    "accepted: target_modules"
                )
        if peft_config.target_modules is None:
            model_type = model_config.get("model_type")
            known = self.target_module_mapping.get(model_type)
            if known is None:
                raise ValueError(
                    f"Please specify `target_modules` in `peft_config`: no default for model type {model_type!r}"
                )
            peft_config.target_modules = known if isinstance(known, str) else set(known)
        return peft_config

    def _check_new_adapter_config(self, config: LolduConfig) -> None:
        super()._check_new_adapter_config(config)
        for name, layer in hosts(self.model):
            if isinstance(layer, LolduLayer) and layer.merged:
                raise ValueError(
                    f"layer {name!r} has adapters {layer.merged_adapters} merged, so that a new adapter would be made "
                    "for the merged weight; accepted: unmerge_adapter() first"
                )

    def _check_merge_allowed(self) -> None:
        """Refuse to merge into a weight that cannot be written to.

        Another module uses such a weight, too, or it is computed at each call.

        Raises
        ------
        ValueError
            Naming the layer, and the other module or what computes the weight.

        Warns
        -----
        UserWarning
            The model has been called, and never called one of its layers, whose adapter had no effect.
        """
        super()._check_merge_allowed()
        layers = {name: layer for name, layer in hosts(self.model) if isinstance(layer, LolduLayer)}
        for layer in layers.values():
            layer.check_mergeable()
        warn_of_passed_by(self.model, stacklevel=4)
        try:
            check_untied(self.model, {name: layer.get_base_layer() for name, layer in layers.items()})
        except RuntimeError as error:
            raise ValueError(str(error)) from error

    @contextmanager
    def _enable_peft_forward_hooks(self, *args: Any, **kwargs: Any) -> Iterator[None]:
        """Pass `adapter_names` of a forward or generate call to the layers.

        It lasts as long as the call.
        """
        del args  # not read from the options of a call: `generate` itself tells how often it repeats rows
        names = kwargs.pop("adapter_names", None)
        if names is None:
            yield
            return
        if self.training:
            # Gradient checkpointing runs layers again when the hooks are gone.
            raise ValueError("Cannot pass `adapter_names` when the model is in training mode.")
        with adapters_by_row(self.model, names):
            yield

    @torch.no_grad()
    def add_weighted_adapter(
        self, adapters: list[str], weights: list[float], adapter_name: str, combination_type: str = "linear"
    ) -> None:
        """Add an adapter that is the weighted sum of other adapters.

        Its update is exactly the weighted sum of their updates. Adapters of the same factors add up entry by entry of
        their cores, without any approximation.

        Parameters
        ----------
        adapters : list of str
        weights : list of float
            One for each adapter, of either sign.
        adapter_name : str
            Of the new one.
        combination_type : str
            "linear", "svd" or "cat": LoRA's names, which all mean the exact sum here.

        Raises
        ------
        TypeError, ValueError
            An argument is of another type than it should be, an adapter does not exist or the new one does already,
            numbers differ, another combination is asked for, or in some layer the adapters do not share their factors
            (rank, basis, core, pivoting or pivots differ).
        """
        _check_adapter_name(adapter_name)
        if adapter_name in self.peft_config:
            raise ValueError(
                f"adapter_name is {shown(adapter_name)}, which is an adapter of the model already; accepted: a new "
                "name, or delete_adapter first"
            )
        check_weighted(self, adapters, weights, combination_type)
        first = self.peft_config[adapters[0]]
        self.peft_config[adapter_name] = replace(
            first,
            target_modules=union_of_targets([self.peft_config[name].target_modules for name in adapters]),
            # The pivots are those of the adapters, and so are ranks where the first has no layer.
            pivots_file=None,
            rank_pattern=_ranks_of(self.model, adapters) | first.rank_pattern,
        )
        self.inject_adapter(self.model, adapter_name)
        self.set_requires_grad(adapter_name, requires_grad=False)
        for _, layer in hosts(self.model):
            if isinstance(layer, LolduLayer) and adapter_name in layer.loldu_adapter:
                set_weighted(layer, dict(zip(adapters, weights, strict=True)), adapter_name)


def _ranks_of(model: nn.Module, adapters: list[str]) -> dict[str, int]:
    """Return a rank_pattern of the layers that the first of adapters has not."""
    ranks = {}
    for name, layer in hosts(model):
        others = [each for each in adapters if isinstance(layer, LolduLayer) and each in layer.loldu_adapter]
        if others and adapters[0] not in others:
            ranks[f"^{re.escape(plain_name(name, model))}"] = layer.adapter(others[0]).rank
    return ranks


def _before_saving(model: nn.Module, *_: Any) -> None:
    """Warn of layers without effect before an adapter is saved.

    The adapter had no effect in these layers.
    """
    if isinstance(model, LolduModel):
        warn_of_passed_by(model.model, stacklevel=6)


def _check_adapter_name(name: object) -> None:
    # It becomes a part of the names of parameters.
    if not isinstance(name, str) or not name or "." in name:
        raise ValueError(f"adapter_name is {shown(name)}; accepted: a name without dots")


def _in_wrappers(parent: nn.Module, name: str, layer: nn.Module) -> tuple[nn.Module, str, nn.Module]:
    """Return the layer inside of wrappers of it alone.

    With it come the innermost wrapper and the layer's name there.
    """
    while wrapped := next((key for key in LAYER_WRAPPED if key in layer._modules), None):  # noqa: SLF001
        parent, name, layer = layer, wrapped, layer.get_submodule(wrapped)
    return parent, name, layer


def _repeated_modules(model: nn.Module) -> dict[nn.Module, list[str]]:
    """Return the plain names of each module that stands in several places."""
    return {
        module: [plain_name(name, model) for name in names] for module, names in places(model).items() if len(names) > 1
    }


def _adapted_names(model: nn.Module) -> Iterator[str]:
    """Yield the prefix of each adapted layer's tensors.

    Their names in the plain model begin with it.
    """
    for name, layer in hosts(model):
        if isinstance(layer, LolduLayer):
            yield f"{plain_name(name, model)}.".removeprefix(".")


def _describe(config: LolduConfig, key: str, base_layer: nn.Module, kind: type[LayerKind]) -> None:
    """Complete the configuration with facts of a layer.

    An adapter's numbers alone do not tell these.
    """
    if kind is TransposedLinearKind:
        config.fan_in_fan_out = True
    if kind is not LinearKind:
        config.layer_kinds = {**(config.layer_kinds or {}), key: kind.name}
    obstacle = lora_obstacle(base_layer)
    if obstacle:
        config.lora_obstacles = {**(config.lora_obstacles or {}), key: obstacle}


def _clipped(config: LolduConfig, key: str, base_layer: nn.Module, rank: int) -> int:
    """Return a layer's rank, and note a smaller one.

    A smaller rank is written into the configuration, which is saved.
    """
    clipped = int(clipped_rank(rank, base_layer) or rank)
    if clipped != rank:
        _note_rank(config, key, clipped)
    return clipped


def _note_rank(config: LolduConfig, key: str, rank: int) -> None:
    """Write a layer's rank into the configuration, before all patterns."""
    pattern = f"^{re.escape(key)}"
    others = {name: value for name, value in config.rank_pattern.items() if name != pattern}
    config.rank_pattern = {pattern: rank, **others}


def _for_layer(pattern: dict[str, Any], key: str, default: Any) -> Any:
    return pattern.get(get_pattern_key(pattern.keys(), key), default)
