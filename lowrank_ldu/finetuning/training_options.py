"""Check options of transformers' Trainer, and make its arguments."""

from __future__ import annotations

import dataclasses
import math
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, get_type_hints

import msgspec
import torch

from lowrank_ldu.errors import OptionError, UserError
from lowrank_ldu.finetuning.extra import require
from lowrank_ldu.validation import shown

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping
    from pathlib import Path

# A run is evaluated and saved at the same moments, so that its best state is always on disk.
_RESERVED = {
    "output_dir": "--out",
    "run_name": "--out",
    "seed": "--seed",
    "data_seed": "--seed",
    "report_to": "--report-to",
    "resume_from_checkpoint": "leave it out, the same command again resumes",
    "save_strategy": "eval_strategy, or save_steps for checkpoints between evaluations",
    "load_best_model_at_end": "leave it out, the best evaluation is always taken",
    "metric_for_best_model": "leave it out, it is the task's metric",
    "greater_is_better": "leave it out, it is the task's metric",
    "logging_strategy": "logging_steps",
    "logging_nan_inf_filter": "leave it out, a loss that is not finite stops the run",
    "ignore_data_skip": "leave it out, a resumed run goes on in the same order of data",
    "restore_callback_states_from_checkpoint": "leave it out",
    "save_only_model": "leave it out, a run is resumed from its checkpoints",
    "auto_find_batch_size": "per_device_train_batch_size and gradient_accumulation_steps",
    "remove_unused_columns": "leave it out",
    "label_names": "leave it out",
    "prediction_loss_only": "leave it out",
    "disable_tqdm": "leave it out",
    "fsdp": "leave it out, the launcher says it: accelerate launch --use_fsdp --fsdp_version 2",
    "fsdp_config": "leave it out, the launcher says it: accelerate launch --use_fsdp --fsdp_version 2",
    "deepspeed": "leave it out, models are sharded by accelerate launch --use_fsdp --fsdp_version 2",
    "parallelism_config": "leave it out, models are sharded by accelerate launch --use_fsdp --fsdp_version 2",
    "eval_do_concat_batches": "leave it out, metrics are of all rows",
    "batch_eval_metrics": "leave it out, metrics are of all rows",
    "include_for_metrics": "leave it out, metrics are of predictions and labels",
    "eval_use_gather_object": "leave it out, predictions are tensors",
    "debug": "leave it out, a loss that is not finite stops the run",
    "optim_target_modules": "leave it out, what is trained is the method's",
    "enable_jit_checkpoint": "leave it out, or save_steps for checkpoints between evaluations",
    "local_rank": "leave it out, accelerate sets it",
    "_n_gpu": "leave it out, accelerate sets it",
}
_RESERVED_STARTS = ("do_", "hub_", "push_to_hub")
# Of transformers before 5.15, and translated into warmup_steps for later versions.
WARMUP_RATIO = "warmup_ratio"
# Names of earlier versions of transformers, which later ones warn of.
_RENAMED = {
    "gradient_checkpointing": "activation_checkpointing",
    "gradient_checkpointing_kwargs": "activation_checkpointing_kwargs",
}
_POSITIVE = (lambda value: math.isfinite(value) and value > 0, "a positive finite number")
_COUNT = (lambda value: value >= 1, "from 1 on")
_FROM_ZERO = (lambda value: math.isfinite(value) and value >= 0, "a finite number from 0 on")
_BELOW_ONE = (lambda value: 0 <= value < 1, "from 0 to below 1")
_RANGES: Mapping[str, tuple[Callable[[float], bool], str]] = {
    "learning_rate": _POSITIVE,
    "num_train_epochs": _POSITIVE,
    "per_device_train_batch_size": _COUNT,
    "per_device_eval_batch_size": _COUNT,
    "gradient_accumulation_steps": _COUNT,
    "save_total_limit": _COUNT,
    "eval_steps": _COUNT,
    "save_steps": _COUNT,
    "eval_accumulation_steps": _COUNT,
    "torch_empty_cache_steps": _COUNT,
    "logging_steps": _POSITIVE,
    "weight_decay": _FROM_ZERO,
    "max_grad_norm": _FROM_ZERO,
    "warmup_steps": _FROM_ZERO,
    "eval_delay": _FROM_ZERO,
    "neftune_noise_alpha": _FROM_ZERO,
    "dataloader_num_workers": _FROM_ZERO,
    "adam_epsilon": _FROM_ZERO,
    "adam_beta1": _BELOW_ONE,
    "adam_beta2": _BELOW_ONE,
    "label_smoothing_factor": _BELOW_ONE,
    WARMUP_RATIO: (lambda value: 0 <= value <= 1, "from 0 to 1"),
}
_CHOICES = {
    "eval_strategy": ("epoch", "steps", "no"),
    # transformers takes any other word for the first.
    "train_sampling_strategy": ("random", "sequential", "group_by_length"),
}
_DEFAULTS = {"eval_strategy": "epoch", "logging_steps": 50, "save_total_limit": 2}


def training_names() -> frozenset[str]:
    """Return the names that a recipe may give to the Trainer."""
    fields = dataclasses.fields(require("transformers").TrainingArguments)
    names = {each.name for each in fields if each.init}
    return frozenset((names | {WARMUP_RATIO}) - reserved(names))


def reserved(names: Iterable[str]) -> set[str]:
    """Return those names that the run itself sets."""
    return {name for name in names if name in _RESERVED or name.startswith(_RESERVED_STARTS)}


def refuse_reserved(values: Mapping[str, Any]) -> None:
    """Refuse what the run itself sets, and say how it is set.

    Raises
    ------
    OptionError
        The message names the option.
    """
    for name in sorted(reserved(values)):
        accepted = _RESERVED.get(name, "leave it out, runs stay in their folder")
        raise OptionError(f"{name} is set by the run itself; accepted: {accepted}")


def checked_training(values: Mapping[str, Any]) -> dict[str, Any]:
    """Check the values of the Trainer's options.

    Parameters
    ----------
    values : mapping
        Names of `training_names`, and their values.

    Returns
    -------
    dict
        The values, with those that a run has by default.

    Raises
    ------
    OptionError
        A value is of another type, or two options contradict each other.
    """
    hints = get_type_hints(require("transformers").TrainingArguments)
    # A warm-up's share of the steps is a number in every version.
    given = {name: _converted(name, value, hints.get(name, float)) for name, value in values.items()}
    if WARMUP_RATIO in given and given.get("warmup_steps"):
        raise OptionError(f"{WARMUP_RATIO} and warmup_steps are given; accepted: one of them")
    checked = {**_DEFAULTS, **given}
    for name, choices in _CHOICES.items():
        if name in checked and checked[name] not in choices:
            raise OptionError(f"{name} is {shown(checked[name])}; accepted: {', '.join(choices)}")
    if checked.get("dataloader_multiprocessing_context") and not checked.get("dataloader_num_workers"):
        raise OptionError("dataloader_multiprocessing_context is for workers; accepted: with dataloader_num_workers")
    if ("eval_steps" in checked) != (checked["eval_strategy"] == "steps"):
        raise OptionError("eval_steps and eval_strategy = 'steps' belong together; accepted: both or none")
    for name, (fits, accepted) in _RANGES.items():
        if name in checked and (checked[name] is None or not fits(checked[name])):
            raise OptionError(f"{name} is {checked[name]}; accepted: {accepted}")
    return checked


def _converted(name: str, value: Any, kind: Any) -> Any:
    """Return a value of the type that an option has."""
    try:
        # A type that msgspec has no words for is left to transformers' own checks.
        msgspec.json.schema(kind)
    except TypeError:
        return value
    try:
        return msgspec.convert(value, kind)
    except msgspec.ValidationError as error:
        raise OptionError(f"{name} is {shown(value)}: {str(error)[:1].lower()}{str(error)[1:]}") from error


def training_arguments(values: Mapping[str, Any], folder: Path, *, seed: int, report_to: str, quiet: bool) -> Any:
    """Make transformers' TrainingArguments of checked values.

    Parameters
    ----------
    values : mapping
        Of `checked_training`.
    folder : pathlib.Path
        For checkpoints.
    seed : int
    report_to : str
    quiet : bool
        Whether there are no progress bars.

    Returns
    -------
    transformers.TrainingArguments

    Raises
    ------
    OptionError
        transformers refuses the values, and the message is its own; or fp16 is asked for without a GPU.
    """
    transformers = require("transformers")
    names = {each.name for each in dataclasses.fields(transformers.TrainingArguments)}
    # Where it is no longer an option, the trainer counts the steps of the warm-up.
    given = {name: value for name, value in values.items() if name in names and name != WARMUP_RATIO}
    for old, new in _RENAMED.items():
        if old in given and new in names:
            given.setdefault(new, given.pop(old))
    # Checkpoints at evaluations come by the callback; this is for those between them.
    given |= {"save_strategy": "steps"} if "save_steps" in given else {"save_strategy": "no"}
    # Memory is pinned for a GPU, and torch warns where there is none.
    given.setdefault("dataloader_pin_memory", torch.cuda.is_available())
    # Half precision is refused on the CPU where that was not asked for.
    if not torch.accelerator.is_available():
        given.setdefault("use_cpu", True)
    # The limit counts whole checkpoints, which only the run knows.
    given.pop("save_total_limit")
    with refused_options():
        arguments = transformers.TrainingArguments(
            output_dir=str(folder),
            seed=seed,
            data_seed=seed,
            report_to=report_to,
            run_name=str(folder.parent),
            disable_tqdm=quiet,
            logging_nan_inf_filter=False,
            logging_strategy="steps",
            save_total_limit=None,
            **given,
        )
    if arguments.fp16 and arguments.device.type == "cpu":
        # It would be left out in silence.
        raise OptionError("fp16 is True, and there is no GPU that it is for; accepted: fp16 = false")
    return arguments


@contextmanager
def refused_options() -> Iterator[None]:
    """Turn what transformers says of the training options into an `OptionError`."""
    try:
        yield
    except UserError:
        raise
    except (ValueError, TypeError, ImportError, RuntimeError, KeyError) as error:
        raise OptionError(f"transformers refuses the training options: {' '.join(str(error).split())}") from error


def total_steps(arguments: Any, rows: int) -> int:
    """Return the number of the optimizer's steps, as the Trainer counts them.

    Parameters
    ----------
    arguments : transformers.TrainingArguments
    rows : int
        Of the training split.

    Returns
    -------
    int

    Raises
    ------
    OptionError
        Smaller batches are left out, and there is no whole one.
    """
    together = int(arguments.train_batch_size * arguments.world_size)
    if arguments.dataloader_drop_last and rows < together:
        raise OptionError(
            f"dataloader_drop_last is True, and {rows} training rows are less than a batch of {together}; accepted: "
            "smaller batches, or to leave it out"
        )
    if arguments.max_steps > 0:
        return int(arguments.max_steps)
    batches = rows // together if arguments.dataloader_drop_last else math.ceil(rows / together)
    of_epoch = max(math.ceil(batches / arguments.gradient_accumulation_steps), 1)
    steps: int = math.ceil(arguments.num_train_epochs * of_epoch)
    return steps
