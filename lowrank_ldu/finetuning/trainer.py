"""Train by transformers' Trainer, with a method's own parts."""

from __future__ import annotations

import json
import math
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError
from transformers import Trainer, TrainerCallback
from transformers.trainer import SCHEDULER_NAME

from lowrank_ldu.errors import DivergenceError, OutputError, TrainingError
from lowrank_ldu.finetuning.checkpoints import best_step, keep_latest, mark_whole, unmark, way_on
from lowrank_ldu.finetuning.sharding import layer_classes, save_optimizer, sharded, take_over_from_first, units
from lowrank_ldu.finetuning.trained import (
    load_trained,
    refuse_still,
    refuse_unconnected,
    save_trained,
    without_gradient,
)
from lowrank_ldu.finetuning.training_options import WARMUP_RATIO, refused_options

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from lowrank_ldu.finetuning.methods import Prepared

# Of a process and its machine, and not of the run.
_TIMES = ("_runtime", "_per_second", "total_flos", "train_loss")
_OF_ARCHIVE = "inline_container"
# Steps in which each parameter is to have a gradient once.
_WATCHED = 3


class RecipeTrainer(Trainer):
    """Train what a method has prepared.

    Parameters
    ----------
    prepared : Prepared
        The method's model, groups of parameters, and files.
    options : mapping
        Of `checked_training`.
    head_learning_rate : float, optional
        Of the modules that are trained whole.
    counts_items : bool
        As of `LoadedTask`.
    loss : callable, optional
        As of `LoadedTask`.
    others
        As for transformers' Trainer.
    """

    def __init__(
        self,
        prepared: Prepared,
        options: Mapping[str, Any],
        *,
        head_learning_rate: float | None,
        counts_items: bool,
        loss: Callable[[Any, Any], torch.Tensor] | None = None,
        **others: Any,
    ) -> None:
        self._prepared = prepared
        self._loss = loss
        self._warmup_ratio = options.get(WARMUP_RATIO)
        self._head_learning_rate = head_learning_rate
        with refused_options():
            super().__init__(prepared.model, **others)
        # It is taken to count them if its forward takes any keyword. The loss of classifiers then is the sum over
        # accumulated batches and processes.
        self.model_accepts_loss_kwargs = counts_items
        if self.is_fsdp_enabled:
            self._prepare_sharding()
        self._folder = Path(str(self.args.output_dir))
        self._to_be_sharded = self.is_fsdp_enabled

    def _prepare_sharding(self) -> None:
        """Give all processes the same numbers, and compute in half precision as DDP does.

        accelerate's own way for FSDP2 would round what is trained to half precision, in which a scale that has hardly
        moved is the one that it started as.
        """
        take_over_from_first(self._prepared.model, self.args.device)
        plugin = self.accelerator.state.fsdp_plugin
        plugin.mixed_precision_policy = None
        plugin.transformer_cls_names_to_wrap = layer_classes(self._prepared.model, plugin.transformer_cls_names_to_wrap)
        self.accelerator.prepare_model(self._prepared.model, device_placement=False, evaluation_mode=True)
        self.accelerator.free_memory()

    def shard(self) -> None:
        """Shard the model where it is to be, and training has not done it."""
        if self.is_fsdp_enabled and not units(self._prepared.model):
            self.model, self.optimizer = sharded(self.accelerator, self._prepared.model, self.create_optimizer())
            self.model_wrapped = self.model

    def create_optimizer(self, model: Any = None) -> torch.optim.Optimizer:
        """Make the optimizer, with the method's groups of parameters."""
        if self.optimizer is None:
            groups = self._prepared.parameter_groups(
                self.args.learning_rate, head_lr=self._head_learning_rate, weight_decay=self.args.weight_decay
            )
            with refused_options():
                kind, options = self.get_optimizer_cls_and_kwargs(self.args, self.model if model is None else model)  # type: ignore[arg-type]  # any module
                self.optimizer = kind(groups, **options)
        optimizer: torch.optim.Optimizer = self.optimizer
        return optimizer

    def create_scheduler(self, num_training_steps: int, optimizer: Any = None) -> Any:
        """Make the schedule; the warm-up is a part of all steps where the recipe says so."""
        if self._warmup_ratio is not None:
            self.args.warmup_steps = math.ceil(self._warmup_ratio * num_training_steps)
        with refused_options():
            return super().create_scheduler(num_training_steps, optimizer)

    def compute_loss(self, model: Any, inputs: Any, *given: Any, **named: Any) -> Any:
        """Compute the loss of a batch, by the task's own function where it has one."""
        if self._loss is None:
            return super().compute_loss(model, inputs, *given, **named)
        loss = self._loss(model, inputs)
        return (loss, {}) if named.get("return_outputs") else loss

    def prediction_step(self, model: Any, inputs: Any, prediction_loss_only: bool, *given: Any, **named: Any) -> Any:
        """Evaluate a batch; of a task's own loss there is nothing else."""
        if self._loss is None:
            return super().prediction_step(model, inputs, prediction_loss_only, *given, **named)
        with torch.no_grad(), self.compute_loss_context_manager():
            return self._loss(model, self._prepare_inputs(inputs)).detach().mean(), None, None

    def _get_eval_sampler(self, eval_dataset: Any) -> Any:
        """Go through rows in their order, also where training groups them by length.

        Predictions of different runs are compared row by row.
        """
        sampler = super()._get_eval_sampler(eval_dataset)
        return sampler if sampler is None else torch.utils.data.SequentialSampler(eval_dataset)

    def training_step(self, *given: Any, **named: Any) -> torch.Tensor:
        """Take the gradients of a batch, and stop at a loss that is no number."""
        if self._to_be_sharded:
            self._to_be_sharded = False
            if not units(self._prepared.model):
                # Each process would train by itself, and only one of them be saved.
                raise TrainingError("accelerate was asked for FSDP2 and has not sharded the model; accepted: DDP")
        loss: torch.Tensor = super().training_step(*given, **named)
        if not torch.isfinite(loss).all():
            raise DivergenceError(
                f"the loss is {loss.float().mean().item()} in step {self.state.global_step + 1}; accepted: a smaller "
                f"learning_rate, more warm-up, or bf16 instead of fp16; {way_on(self._folder)}"
            )
        return loss

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Save what is trained, and nothing of the base."""
        folder = self._folder if output_dir is None else Path(output_dir)
        if self.args.should_save:
            folder.mkdir(parents=True, exist_ok=True)
        save_trained(self._prepared, folder, writes=self.args.should_save)

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        """Save optimizer and schedule; of a sharded model the Trainer would save all numbers, too."""
        if not self.is_fsdp_enabled:
            super()._save_optimizer_and_scheduler(output_dir)
            return
        save_optimizer(self.accelerator, self.optimizer, self._prepared.model, output_dir)
        if self.args.should_save:
            torch.save(self.lr_scheduler.state_dict(), Path(output_dir) / SCHEDULER_NAME)  # type: ignore[union-attr]  # it is there

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        folder = self._folder / f"checkpoint-{self.state.global_step}"
        try:
            if self.args.should_save:
                unmark(folder)
            super()._save_checkpoint(model, trial)
            self.accelerator.wait_for_everyone()
            if self.args.should_save:
                mark_whole(folder)
        # The second and third are what torch and safetensors say of a full disk.
        except (OSError, RuntimeError, SafetensorError) as error:
            raise OutputError(f"{folder}: cannot be written ({_reason(error)}); {way_on(self._folder)}") from error

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:  # noqa: ARG002
        load_trained(self._prepared, Path(resume_from_checkpoint))


def _reason(error: Exception) -> str:
    """Return why a file cannot be written, in words."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    # torch's writer of archives says where it stood, and not what the system said.
    if _OF_ARCHIVE in str(error):
        return "no space is left, or the file is larger than is allowed"
    return " ".join(str(error).split())


class RunCallback(TrainerCallback):
    """Save with each evaluation, write the log, and check gradients.

    Parameters
    ----------
    prepared : Prepared
    log : pathlib.Path
        Each entry becomes a line.
    metric : str
        Of the evaluations: the best one's checkpoint is kept.
    greater : bool
        Whether more of it is better.
    kept : int
        Number of the latest checkpoints that are kept beside it.
    seconds : float
        Time that an earlier process trained for.
    tell : callable, optional
        Gets a line on each evaluation.
    """

    def __init__(
        self,
        prepared: Prepared,
        log: Path,
        metric: str,
        *,
        greater: bool,
        kept: int,
        seconds: float,
        tell: Callable[[str], None] | None = None,
    ) -> None:
        self._prepared = prepared
        self._tell = tell
        self._log = log
        self._metric = metric
        self._greater = greater
        self._kept = kept
        self._before = seconds
        self._began = time.monotonic()
        self._steps = 0
        self._still: set[str] = set()

    @property
    def seconds(self) -> float:
        """Time of training, that of earlier processes included."""
        return self._before + time.monotonic() - self._began

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **_: Any) -> None:  # noqa: ARG002
        """Check the first gradients.

        One of LoRA's two matrices has none until the other one has moved, and a scale none until what it scales has.
        A warm-up delays that by a step.
        """
        if self._steps == 0:
            refuse_unconnected(self._prepared)
            self._still = without_gradient(self._prepared)
        elif self._steps < _WATCHED:
            self._still &= without_gradient(self._prepared)
        self._steps += 1
        if self._steps == _WATCHED:
            refuse_still(self._prepared, self._still, steps=_WATCHED)

    def on_optimizer_step(self, args: Any, state: Any, control: Any, **_: Any) -> None:  # noqa: ARG002
        """Do what the method does after each step."""
        self._prepared.after_step()

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Have every evaluation saved, and every checkpoint logged.

        At the end of an epoch that is done once, by `on_epoch_end`.
        """
        if args.eval_strategy == "steps":
            if control.should_training_stop:
                control.should_evaluate = True
            if control.should_evaluate:
                control.should_save = True
        elif control.should_training_stop or state.epoch == int(state.epoch):
            control.should_save = False
        if control.should_save:
            control.should_log = True

    def on_epoch_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:  # noqa: ARG002
        """Save with the evaluation at the end of an epoch, or without one where there is none."""
        if control.should_evaluate or args.eval_strategy == "no":
            control.should_save = control.should_log = True

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:  # noqa: ARG002
        """Remove checkpoints that nothing needs any more."""
        if state.is_world_process_zero:
            best = best_step({"log_history": state.log_history}, self._metric, greater=self._greater)
            keep_latest(Path(args.output_dir), self._kept, best)

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:  # noqa: ARG002
        """Add a line to the log."""
        if state.is_world_process_zero and "train_runtime" not in logs:
            entry = {"step": state.global_step, "epoch": state.epoch, "seconds": round(self.seconds, 3)}
            entry |= {name: value for name, value in logs.items() if not name.endswith(_TIMES) and name not in entry}
            with self._log.open("a", encoding="utf-8") as file:
                file.write(f"{json.dumps(entry)}\n")
            evaluated = {name.removeprefix("eval_"): value for name, value in entry.items() if "eval_" in name}
            if self._tell is not None and evaluated:
                figures = ", ".join(f"{name} {value:.4g}" for name, value in evaluated.items())
                self._tell(f"step {state.global_step} of {state.max_steps}: {figures}")
