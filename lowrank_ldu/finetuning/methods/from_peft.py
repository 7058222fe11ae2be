"""Offer PEFT's methods, each by its own configuration."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from lowrank_ldu.finetuning.methods import peft_numbers
from lowrank_ldu.finetuning.methods.method import Method, MethodRequest, Prepared, targets_of
from lowrank_ldu.finetuning.methods.modules import check_targets, whole_modules
from lowrank_ldu.finetuning.methods.options import (
    as_option_errors,
    check_finite,
    check_names,
    check_ranges,
    converted,
    field_defaults,
)
from lowrank_ldu.finetuning.methods.peft_model import (
    PreparedByPeft,
    config_class,
    of_task,
    prepared_by_peft,
    quiet,
    why_missing,
)

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import nn

    from lowrank_ldu.finetuning.methods.peft_numbers import Numbers

# Fields that the task and PEFT fill in.
FILLED_IN = {
    "modules_to_save": "the task says what is trained whole: trained_whole",
    "task_type": "the task says it",
    "inference_mode": "the adapter is trained",
    "peft_type": "the method's name says it",
    "base_model_name_or_path": "the model says it",
    "revision": "the model says it",
    "auto_mapping": "PEFT fills it in",
    "peft_version": "PEFT fills it in",
}
_OBJECT = "it takes an object or data of its own, which options cannot give"
_OTHER_START = "it is for starts from data or for quantized ones, which options cannot give"
_NOT_COUNTED = "the formula of trained numbers does not know it"
UNUSABLE_OF_LORA = {
    "megatron_config": _OBJECT,
    "megatron_core": _OBJECT,
    "loftq_config": _OTHER_START,
    "eva_config": _OTHER_START,
    "corda_config": _OTHER_START,
    "lora_ga_config": _OTHER_START,
    "runtime_config": _OBJECT,
    "velora_config": _OBJECT,
    "monteclora_config": _OBJECT,
    "arrow_config": _OBJECT,
    "kasa_config": _OBJECT,
    "use_bdlora": _OBJECT,
    "alora_invocation_tokens": "it is for serving",
    "trainable_token_indices": _NOT_COUNTED,
    "target_parameters": _NOT_COUNTED,
    "layer_replication": _NOT_COUNTED,
    "use_qalora": _NOT_COUNTED,
    "qalora_group_size": _NOT_COUNTED,
    "ensure_weight_tying": "tied weights are not merged",
    "use_dora": "it is method 'dora'",
}


@dataclass(frozen=True)
class PeftMethod(Method):
    """Train an adapter of PEFT.

    Options are the fields of the method's configuration, but for those that the task fills in and those in `unusable`.
    target_modules overrides the task's targets.

    Attributes
    ----------
    config_name : str
        Of the class in `peft`, which is looked up when it is needed.
    numbers : callable
        Formula of the trained numbers: layers and configuration to int.
    defaults : mapping
        Where they are not PEFT's.
    fixed : mapping
        Fields that make the configuration this method.
    unusable : mapping of str to str
        Fields that are no options, and why.
    least : mapping of str to int
        Least values of integers.
    choices : mapping of str to tuple
        Values that are accepted, where they are fewer than PEFT's.
    """

    config_name: str
    numbers: Numbers
    defaults: Mapping[str, Any] = field(default_factory=dict)
    fixed: Mapping[str, Any] = field(default_factory=dict)
    unusable: Mapping[str, str] = field(default_factory=dict)
    least: Mapping[str, int] = field(default_factory=dict)
    choices: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)

    def unavailable(self) -> str | None:
        """Return whether PEFT, or its class, is missing; see `Method.unavailable`."""
        return why_missing("peft", self.config_name)

    def options(self, given: Mapping[str, Any]) -> dict[str, Any]:
        """Check options by PEFT's configuration; see `Method.options`."""
        config = self._config_class()
        why = {**FILLED_IN, **self.unusable, **dict.fromkeys(self.fixed, f"method {self.name!r} sets it")}
        of_peft = field_defaults(config, why)
        defaults = of_peft | {name: value for name, value in self.defaults.items() if name in of_peft}
        check_names(self.name, given, defaults, why)
        options = defaults | converted(config, given)
        check_finite(options)
        check_ranges(options, self.least, self.choices)
        with as_option_errors(f"method {self.name!r}", quiet=True):
            self.config(options)
        return options

    def config(self, options: Mapping[str, Any], **others: Any) -> Any:
        """Return a configuration of checked options and further fields."""
        with quiet():
            return self._config_class()(**{**options, **self.fixed, **others})

    def prepare(self, model: nn.Module, options: Mapping[str, Any], request: MethodRequest) -> Prepared:
        """Put PEFT's layers into the model; see `Method.prepare`."""
        checked = self.options(options)
        whole = whole_modules(model, request.trained_whole)
        checked["target_modules"] = targets_of(checked, request)
        check_targets(model, checked["target_modules"], whole)
        with as_option_errors(f"method {self.name!r}"):
            config = self.config(self.completed(checked, request), **of_task(model, request, whole))
        peft_model, layers, biases = prepared_by_peft(model, config, request, self.name, whole)
        return self.prepared(peft_model, self.numbers(layers, config) + biases, whole)

    def completed(self, options: dict[str, Any], request: MethodRequest) -> dict[str, Any]:  # noqa: ARG002
        """Return options with what the request says of them."""
        return options

    def prepared(self, model: nn.Module, numbers: int, whole: tuple[str, ...]) -> Prepared:
        """Return what `prepare` does, of a model with adapters."""
        return PreparedByPeft(model, numbers, whole)

    def _config_class(self) -> Any:
        return config_class(self.name, "peft", self.config_name)


_R = {"r": 1}
PEFT_METHODS = (
    PeftMethod(
        "lora",
        "LoRA",
        "LoraConfig",
        peft_numbers.lora,
        unusable=UNUSABLE_OF_LORA,
        least=_R,
        choices={"init_lora_weights": (True, False, "gaussian", "olora", "orthogonal")},
    ),
    PeftMethod(
        "dora",
        "DoRA",
        "LoraConfig",
        peft_numbers.dora,
        fixed={"use_dora": True},
        unusable=UNUSABLE_OF_LORA | {"lora_bias": "PEFT has no such variant of DoRA"},
        least=_R,
        choices={"init_lora_weights": (True, False, "gaussian")},
    ),
    PeftMethod(
        "pissa",
        "PiSSA",
        "LoraConfig",
        peft_numbers.lora,
        # The exact decomposition: a randomized one would leave another residual when the adapter is loaded.
        fixed={"init_lora_weights": "pissa"},
        unusable=UNUSABLE_OF_LORA,
        least=_R,
    ),
    PeftMethod(
        "vera",
        "VeRA",
        "VeraConfig",
        peft_numbers.vera,
        # The frozen projections are drawn from projection_prng_key again.
        defaults={"save_projection": False},
        least=_R,
    ),
    PeftMethod("fourierft", "FourierFT", "FourierFTConfig", peft_numbers.fourierft, least={"n_frequency": 1}),
    PeftMethod("oft", "OFT", "OFTConfig", peft_numbers.oft, least={"r": 0, "oft_block_size": 0}),
    PeftMethod("ia3", "IA3", "IA3Config", peft_numbers.ia3, defaults={"feedforward_modules": []}),
    PeftMethod(
        "vblora",
        "VB-LoRA",
        "VBLoRAConfig",
        peft_numbers.vblora,
        unusable={"save_only_topk_weights": "training could not be resumed"},
        least=_R | dict.fromkeys(("num_vectors", "vector_length", "topk"), 1),
    ),
    PeftMethod("unilora", "Uni-LoRA", "UniLoraConfig", peft_numbers.unilora, least=_R | {"theta_d_length": 1}),
    PeftMethod("psoft", "PSOFT", "PsoftConfig", peft_numbers.psoft, least=_R),
    PeftMethod(
        "tinylora",
        "TinyLoRA",
        "TinyLoraConfig",
        peft_numbers.tinylora,
        defaults={"save_projection": False},
        least=_R | {"u": 1},
        # PEFT leaves memory as it finds it for False.
        choices={"init_weights": (True, "uniform")},
    ),
    PeftMethod("beft", "BEFT", "BeftConfig", peft_numbers.beft),
)
