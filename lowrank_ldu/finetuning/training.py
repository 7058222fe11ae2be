"""Train one run, from what it is told to what it comes to."""

from __future__ import annotations

import contextlib
import math
import sys
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from lowrank_ldu.errors import OptionError, RunDirectoryError, TrainingError, UserError
from lowrank_ldu.files import whole_folder
from lowrank_ldu.finetuning.checkpoints import (
    best_step,
    remove_incomplete,
    step_of,
    trainer_state,
    way_on,
    whole_checkpoints,
)
from lowrank_ldu.finetuning.extra import require
from lowrank_ldu.finetuning.head import kept_head, train_head
from lowrank_ldu.finetuning.manifest import describe_start, peak_memory, reset_peak_memory, weights_digest
from lowrank_ldu.finetuning.methods import MethodRequest, Prepared, get_method
from lowrank_ldu.finetuning.processes import is_first, of_first, wait_for_all
from lowrank_ldu.finetuning.run_directory import NOT_EVALUATED, RunDirectory
from lowrank_ldu.finetuning.sharding import check_launcher, check_shardable, check_sharding, layout, whole
from lowrank_ldu.finetuning.tasks import LoadedTask, get_kind
from lowrank_ldu.finetuning.trained import check_numbers, load_trained
from lowrank_ldu.finetuning.training_options import total_steps, training_arguments

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from lowrank_ldu.finetuning.configuration import RunConfig

# Batches that a method may be fitted to.
_FITTED_TO = 64
# Of these, so many at a time are sorted by length.
_WINDOW = 8
# transformers' name of the strategy, and of the column that it takes lengths from.
_BY_LENGTH, _TOKENS = "group_by_length", "input_ids"
_SEEDS = 1000


class Training:
    """Load what a run needs, train it, and record what it comes to.

    Parameters
    ----------
    config : RunConfig
    directory : RunDirectory
        Locked by this process.
    report_to : str
    tell : callable, optional
    heads : pathlib.Path, optional
        As for `train`.
    """

    def __init__(
        self,
        config: RunConfig,
        directory: RunDirectory,
        report_to: str,
        tell: Callable[[str], None] | None = None,
        heads: Path | None = None,
    ) -> None:
        transformers, shown = require("transformers"), sys.stderr.isatty()
        start, sharded = describe_start(), check_launcher()
        reset_peak_memory()
        arguments = training_arguments(
            config.training, directory.checkpoints, seed=config.seed, report_to=report_to, quiet=not shown
        )
        transformers.set_seed(config.seed)
        with _quiet(bars=shown):
            task = get_kind(config.kind).load(config)
        _check_lengths(task, arguments)
        same = {
            "model": weights_digest(task.model, task.head),
            "data": task.data_digest,
            "rows_in_a_step": arguments.train_batch_size * arguments.world_size * arguments.gradient_accumulation_steps,
        }
        if sharded:
            same["sharded"] = layout(arguments.world_size)
        self._directory = directory
        self._task = task
        self._whole = whole_checkpoints(directory.checkpoints)
        step = step_of(self._whole[-1]) if self._whole else 0
        # None begins before all have looked.
        wait_for_all()
        seconds = 0.0
        if is_first():
            directory.begin(config.as_dict(), same, start | {"from_step": step})
            # What is finished is evaluated only, and its checkpoints may be gone.
            if directory.finished() is None:
                remove_incomplete(directory.checkpoints)
                seconds = directory.shorten_log(step)
        # A model that is to be sharded may be too large for one GPU.
        device = torch.device("cpu") if sharded else arguments.device
        task.model.to(device)
        if config.head_epochs:
            key = {
                **same,
                "config": config.head_dict(),
                "rows": arguments.per_device_train_batch_size,
                "device": device.type,
                "threads": torch.get_num_threads(),
            }
            with kept_head(task.model, task.head, heads, key) as found:
                if not found:
                    _train_head(config, task, arguments)
        self._prepared = _prepare(config, task, arguments)
        if sharded:
            check_shardable(self._prepared, task.obstacle_to_sharding, compiled=arguments.torch_compile)
        self._callback, self._trainer = self._trainer_of(config, arguments, seconds, tell)
        if sharded:
            check_sharding(self._trainer.accelerator)

    def _trainer_of(
        self, config: RunConfig, arguments: Any, seconds: float, tell: Callable[[str], None] | None
    ) -> tuple[Any, Any]:
        from lowrank_ldu.finetuning.trainer import RecipeTrainer, RunCallback  # noqa: PLC0415  # slow to import

        task, directory = self._task, self._directory
        callback = RunCallback(
            self._prepared,
            directory.log,
            task.metric,
            greater=task.greater_is_better,
            kept=config.training["save_total_limit"],
            seconds=seconds,
            tell=tell,
        )
        trainer = RecipeTrainer(
            self._prepared,
            config.training,
            head_learning_rate=config.head_learning_rate,
            counts_items=task.counts_items,
            loss=task.loss,
            args=arguments,
            train_dataset=task.train,
            eval_dataset=task.validation,
            data_collator=task.collator,
            compute_metrics=task.compute_metrics,
            preprocess_logits_for_metrics=task.reduce_logits,
            callbacks=[callback, *(() if task.callbacks is None else task.callbacks(directory.path))],
        )
        # It would print every entry of the log.
        trainer.remove_callback(require("transformers").PrinterCallback)
        return callback, trainer

    def record(self, *, tests: bool) -> dict[str, Any]:
        """Train if that is not finished, evaluate, and write what it comes to."""
        # What cannot be evaluated is told before training.
        if tests and self._task.load_evaluations is not None:
            of_first(self._task.load_evaluations)
        record = self._directory.finished() or self._trained()
        splits = {name: rows for name, rows in self._task.others.items() if name not in record["metrics"]}
        functions = {name: each for name, each in self._task.evaluations.items() if name not in record["metrics"]}
        if tests:
            # It is evaluated as whoever loads the adapter gets it.
            self._load_adapter()
            for name, rows in splits.items():
                record["metrics"][name] = self._evaluated(name, rows)
            for name, evaluation in functions.items():
                # Processes that hold parts of one model have to compute together.
                evaluate = partial(evaluation, self._prepared.model)
                record["metrics"][name] = evaluate() if self._trainer.is_fsdp_enabled else of_first(evaluate)
        record[NOT_EVALUATED] = [] if tests else [*splits, *functions]
        if is_first():
            self._directory.finish(record)
        wait_for_all()
        return record

    def _trained(self) -> dict[str, Any]:
        task, directory, prepared = self._task, self._directory, self._prepared
        numbers, whole_numbers = check_numbers(prepared)
        if not (self._whole and _is_at_the_end(trainer_state(self._whole[-1]))):
            _go_on(self._trainer, self._whole)
        best, steps = _best(directory, task, evaluated=self._trainer.args.eval_strategy != "no")
        load_trained(prepared, directory.checkpoints / f"checkpoint-{best}")
        with whole(prepared):
            if is_first():
                with whole_folder(directory.adapter, overwrite=True) as folder:
                    prepared.save(folder)
        wait_for_all()
        self._load_adapter()
        return {
            "metric": task.metric,
            "greater_is_better": task.greater_is_better,
            "reported": "test" if "test" in task.others else "validation",
            "metrics": {"validation": self._evaluated("validation", task.validation)},
            "best_step": best,
            "steps": steps,
            "numbers": numbers,
            "numbers_trained_whole": whole_numbers,
            **_sizes(directory.adapter, prepared.shared_files),
            "seconds": round(self._callback.seconds, 3),
            "peak_memory_bytes": peak_memory(),
        }

    def _load_adapter(self) -> None:
        """Load what the run came to, into a model that can be evaluated."""
        with whole(self._prepared, written=True):
            self._prepared.load(self._directory.adapter)
        self._trainer.shard()

    def _evaluated(self, split: str, rows: Any) -> dict[str, float]:
        """Return the metrics of a split, and keep what they are computed from."""
        found = self._trainer.predict(rows, metric_key_prefix="x")
        if is_first() and self._task.compute_metrics is not None:
            self._directory.keep_predictions(split, found.predictions, found.label_ids)
        return _metrics(found)


def _sizes(adapter: Path, shared: Sequence[str]) -> dict[str, int]:
    """Count the bytes of an adapter, and of the files in its folder that adapters share.

    Those of its card count for nothing.
    """
    sizes = {"adapter_bytes": 0, "shared_bytes": 0}
    for file in adapter.rglob("*"):
        if file.is_file() and file.name != "README.md":
            sizes["shared_bytes" if file.name in shared else "adapter_bytes"] += file.stat().st_size
    return sizes


def _go_on(trainer: Any, whole: Sequence[Path]) -> None:
    """Train from the last whole checkpoint, or from the start."""
    try:
        trainer.train(resume_from_checkpoint=str(whole[-1]) if whole else None)
    except torch.OutOfMemoryError as error:
        raise TrainingError(
            "the GPU's memory is too small for a step; accepted: a smaller per_device_train_batch_size with more "
            f"gradient_accumulation_steps, bf16, or gradient_checkpointing; {way_on(Path(trainer.args.output_dir))}"
        ) from error


def _best(directory: RunDirectory, task: LoadedTask, *, evaluated: bool) -> tuple[int, int]:
    """Return the best evaluation's step, and the last one's; the last one twice where training had none."""
    whole = whole_checkpoints(directory.checkpoints)
    state = trainer_state(whole[-1]) if whole else {"log_history": []}
    if whole and not evaluated:
        return step_of(whole[-1]), int(state["global_step"])
    best = best_step(state, task.metric, greater=task.greater_is_better)
    if best is None:
        raise OptionError("there was no evaluation; accepted: more steps, or a smaller eval_steps or eval_delay")
    if best not in map(step_of, whole):
        raise RunDirectoryError(
            f"{directory.checkpoints}: has no whole checkpoint-{best}, the best one; accepted: another --out"
        )
    return best, int(state["global_step"])


def _train_head(config: RunConfig, task: LoadedTask, arguments: Any) -> None:
    rate = config.head_learning_rate
    train_head(
        task.model,
        task.head,
        # Each seed and epoch has an order of its own.
        lambda epoch: _Batches(task, arguments, config.seed + _SEEDS * epoch, most=None),
        learning_rate=arguments.learning_rate if rate is None else rate,
        epochs=config.head_epochs,
        steps=math.ceil(len(task.train) / arguments.per_device_train_batch_size),
        loss=task.loss,
    )


def _prepare(config: RunConfig, task: LoadedTask, arguments: Any) -> Prepared:
    """Have the method prepare the model."""
    request = MethodRequest(
        targets=[] if config.target_modules is None else config.target_modules,
        trained_whole=list(task.head),
        seed=config.seed,
        batches=_Batches(task, arguments, config.seed),
        task_type=task.task_type,
        total_steps=total_steps(arguments, len(task.train)),
        loss=task.loss,
    )
    try:
        return get_method(config.method).prepare(task.model, config.method_options, request)
    except UserError:
        raise
    except ValueError as error:  # PEFT's own: of targets, most of all
        reason = " ".join(str(error).split())
        raise OptionError(f"method {config.method!r} cannot be used on {config.model!r}: {reason}") from error


class _Batches:
    """Training batches in a random order, the same whenever they are gone through.

    Of all rows, or the first `most` batches. Those have rows of like lengths where training has.
    """

    def __init__(self, task: LoadedTask, arguments: Any, seed: int, most: int | None = _FITTED_TO) -> None:
        self._task = task
        self._most = most
        self._size = arguments.per_device_train_batch_size
        self._seed = seed
        self._grouped = most is not None and arguments.train_sampling_strategy == _BY_LENGTH

    def __iter__(self) -> Iterator[Any]:
        rows, device = self._task.train, next(self._task.model.parameters()).device
        generator = torch.Generator().manual_seed(self._seed)
        order = torch.randperm(len(rows), generator=generator).tolist()
        end = len(order) if self._most is None else min(len(order), self._size * self._most)
        if self._grouped:
            lengths = {place: len(rows[place][_TOKENS]) for place in order[:end]}
            order = _grouped(lengths, self._size, generator)
        for start in range(0, end, self._size):
            batch = self._task.collator([rows[place] for place in order[start : start + self._size]])
            yield {name: values.to(device) for name, values in batch.items()}


def _check_lengths(task: LoadedTask, arguments: Any) -> None:
    """Refuse to group rows that have no length."""
    if arguments.train_sampling_strategy == _BY_LENGTH and _TOKENS not in task.train[0]:
        raise OptionError(
            f"train_sampling_strategy is {_BY_LENGTH!r}, and the training rows are no texts; accepted for them: "
            "'random', 'sequential'"
        )


def _grouped(lengths: Mapping[int, int], size: int, generator: torch.Generator) -> list[int]:
    """Sort each window of a few batches by length, and shuffle its batches.

    Where a batch's loss is the mean over its rows, the sum of gradients over whole windows is what it would be without.
    """
    order, found = list(lengths), list[int]()
    for start in range(0, len(order), size * _WINDOW):
        window = sorted(order[start : start + size * _WINDOW], key=lengths.__getitem__)
        # Only the last batch of all may be smaller.
        whole = len(window) // size
        for batch in torch.randperm(whole, generator=generator).tolist():
            found += window[batch * size : (batch + 1) * size]
        found += window[whole * size :]
    return found


def _is_at_the_end(state: Mapping[str, Any]) -> bool:
    return bool(state["global_step"] >= state["max_steps"])


def _metrics(output: Any) -> dict[str, float]:
    """Keep the task's metrics and the loss of what the Trainer predicts."""
    names = {name.removeprefix("x_"): value for name, value in output.metrics.items()}
    return {name: float(value) for name, value in names.items() if not name.endswith(("runtime", "per_second", "time"))}


@contextlib.contextmanager
def _quiet(*, bars: bool) -> Iterator[None]:
    """Load without messages on what is meant to be so: a head that is new, and bars that nobody sees."""
    datasets, messages = require("datasets"), require("transformers").utils.logging
    disabled, level = datasets.are_progress_bars_disabled(), messages.get_verbosity()
    messages.set_verbosity_error()
    if not bars:
        datasets.disable_progress_bars()
        messages.disable_progress_bar()
    try:
        yield
    finally:
        messages.set_verbosity(level)
        if not bars:
            messages.enable_progress_bar()
        if not disabled:
            datasets.enable_progress_bars()
