"""Load tasks that teach language models to follow instructions."""

from __future__ import annotations

import logging
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

import torch

from lowrank_ldu.errors import OptionError
from lowrank_ldu.finetuning.extra import require
from lowrank_ldu.finetuning.methods import get_method
from lowrank_ldu.finetuning.tasks.answers import IGNORED, answer_losses, answer_metrics, answer_tokens
from lowrank_ldu.finetuning.tasks.data_files import data_digest
from lowrank_ldu.finetuning.tasks.instructions import (
    COLUMNS,
    TEMPLATES,
    TRAIN,
    VALIDATION,
    Template,
    open_instructions,
)
from lowrank_ldu.finetuning.tasks.lm_evaluation import OPTIONS as OPTIONS_OF_EVALUATION
from lowrank_ldu.finetuning.tasks.lm_evaluation import LmEvaluations, check_lm_options
from lowrank_ldu.finetuning.tasks.meta_model import MetaModel, built
from lowrank_ldu.finetuning.tasks.task import LoadedTask
from lowrank_ldu.validation import shown

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import nn

    from lowrank_ldu.finetuning.configuration import RunConfig

_MODEL = "AutoModelForCausalLM"
_COUNTS = ("max_length", "validation_rows", "max_train_samples")
_CHOICES = {"dtype": ("float32", "bfloat16", "float16"), "quantization": ("none", "8bit", "4bit")}
# Methods whose layers PEFT cannot put on quantized weights, or not call there.
_WITHOUT = {"8bit": ("unilora", "tinylora", "dora"), "4bit": ("unilora", "tinylora")}
_CHECKPOINTING = ("gradient_checkpointing", "activation_checkpointing")


class CausalLm:
    """Offer the tuning of causal language models on instructions."""

    TASKS: Mapping[str, Template] = TEMPLATES
    # validation_rows: taken out of the training rows where the data have no validation split. dtype: of the base.
    OPTIONS: Mapping[str, Any] = {
        "max_length": 256,
        "validation_rows": 2000,
        "max_train_samples": None,
        "dtype": "float32",
        "quantization": "none",
        **OPTIONS_OF_EVALUATION,
    }

    def checked_options(self, given: Mapping[str, Any]) -> dict[str, Any]:
        """Check its own options, and fill in the defaults."""
        checked = {**self.OPTIONS, **given}
        for name in _COUNTS:
            value = checked[name]
            if value is None and self.OPTIONS[name] is None:
                continue
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise OptionError(f"{name} is {shown(value)}; accepted: an integer from 1 on")
        for name, accepted in _CHOICES.items():
            if checked[name] not in accepted:
                raise OptionError(f"{name} is {shown(checked[name])}; accepted: {', '.join(accepted)}")
        check_lm_options(checked)
        return checked

    def meta_model(self, config: RunConfig, *, download: bool) -> MetaModel | None:
        """Build the model without numbers; see `Kind.meta_model`."""
        model = built(_MODEL, config.model, download=download)
        return None if model is None else MetaModel(model, config.modules_to_save or [])

    def load(self, config: RunConfig) -> LoadedTask:
        """Load the model and the data of a run."""
        options = config.task_options
        if config.data is None:
            raise OptionError("data is not given; accepted: --data with a file, a folder or an id on the hub")
        rows = open_instructions(
            config.data, validation_rows=options["validation_rows"], train_rows=options["max_train_samples"]
        )
        tokenizer = _load_tokenizer(config)
        template = self.TASKS[config.task]
        tokens = {
            name: answer_tokens(each, tokenizer, template, options["max_length"], name) for name, each in rows.items()
        }
        # Before the model: a task that is not there is told at once.
        evaluations = LmEvaluations(options, tokenizer, config.training.get("per_device_eval_batch_size", 8))
        transformers = require("transformers")
        return LoadedTask(
            model=_load_model(config),
            head=config.modules_to_save or [],
            task_type="CAUSAL_LM",
            train=tokens[TRAIN],
            validation=tokens[VALIDATION],
            collator=transformers.DataCollatorForSeq2Seq(tokenizer, label_pad_token_id=IGNORED),
            metric="loss",
            greater_is_better=False,
            compute_metrics=answer_metrics,
            reduce_logits=answer_losses,
            data_digest=data_digest(rows, COLUMNS),
            evaluations=evaluations.functions,
            load_evaluations=evaluations.load,
            counts_items=True,
        )


def _load_tokenizer(config: RunConfig) -> Any:
    """Load a tokenizer that can end answers and fill up batches."""
    transformers = require("transformers")
    try:
        tokenizer = transformers.AutoTokenizer.from_pretrained(config.model)
    except (OSError, ValueError) as error:
        raise _not_loaded(config, error) from error
    if tokenizer.eos_token_id is None:
        raise OptionError(
            f"model is {config.model!r}, whose tokenizer has no end of sequence; accepted: one with eos_token, with "
            "which answers end"
        )
    if not tokenizer.is_fast:
        raise OptionError(
            f"model is {config.model!r}, whose tokenizer does not tell the places of its tokens in the text; accepted: "
            "a model with a fast tokenizer (tokenizer.json)"
        )
    # Padding has no labels, and attention leaves it out: any token will do.
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    # Positions count from the first token of a row.
    tokenizer.padding_side = "right"
    return tokenizer


def _load_model(config: RunConfig) -> nn.Module:
    options = config.task_options
    _check_method(config, options["quantization"])
    given: dict[str, Any] = {"dtype": getattr(torch, options["dtype"])}
    if options["quantization"] != "none":
        given["quantization_config"] = _quantization(options["quantization"], given["dtype"])
    try:
        model = getattr(require("transformers"), _MODEL).from_pretrained(config.model, **given)
    except (OSError, ValueError) as error:
        raise _not_loaded(config, error) from error
    if options["quantization"] == "none" and getattr(model, "is_quantized", False):  # as it is stored
        _check_method(config, "8bit" if getattr(model, "is_loaded_in_8bit", False) else "4bit")
    for module in model.modules():
        # bitsandbytes reorders 4-bit codes in the first evaluation on such CPUs, and has no gradients for them after.
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False
    longest = getattr(model.config, "max_position_embeddings", None)
    if longest is not None and options["max_length"] > longest:
        raise OptionError(f"max_length is {options['max_length']}; accepted by the model: 1 to {longest}")
    if any(config.training.get(name) for name in _CHECKPOINTING):
        # A reentrant checkpoint passes on gradients only if its inputs, the frozen embedding's outputs, require some.
        model.enable_input_require_grads()
    return model  # type: ignore[no-any-return]


def _not_loaded(config: RunConfig, error: Exception) -> OptionError:
    reason = " ".join(str(error).split())
    return OptionError(f"model is {config.model!r}, which transformers cannot load: {reason}")


def _quantization(kind: str, dtype: torch.dtype) -> Any:
    """Return the configuration of a base of 8-bit integers or 4-bit normal floats."""
    if find_spec("bitsandbytes") is None:
        raise OptionError(
            f"quantization is {kind!r}, and bitsandbytes is absent; accepted: 'none', or pip install bitsandbytes"
        )
    config = require("transformers").BitsAndBytesConfig
    if kind == "8bit":
        # It says at each product that inputs are rounded to float16.
        logging.getLogger("bitsandbytes.autograd._functions").setLevel(logging.ERROR)
        return config(load_in_8bit=True)
    return config(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True, bnb_4bit_compute_dtype=dtype
    )


def _check_method(config: RunConfig, quantization: str) -> None:
    """Refuse methods that cannot train on the base as it is held.

    Steps are small beside the spacing of half precision, and parameters of the model itself would lose them in it.
    """
    dtype = config.task_options["dtype"]
    if quantization == "none" and dtype == "float32":
        return
    held = f"dtype is {dtype!r}" if quantization == "none" else "the base is quantized"
    plain = "dtype = 'float32' with quantization = 'none'"
    if not get_method(config.method).adapts_layers:
        raise OptionError(
            f"method is {config.method!r}, which trains parameters of the model, and {held}; accepted: {plain}, or a "
            "method that adapts layers"
        )
    if config.modules_to_save:
        raise OptionError(
            f"modules_to_save is {shown(config.modules_to_save)}, which are trained whole, and {held}; accepted: "
            f"{plain}, or no modules"
        )
    if config.method in _WITHOUT.get(quantization, ()):
        raise OptionError(
            f"method is {config.method!r}, which PEFT has not for such weights, and {held}; accepted: quantization = "
            "'none', or another method"
        )
