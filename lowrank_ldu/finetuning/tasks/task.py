"""Say what a kind of tasks offers, and what a loaded task holds."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    from torch import Tensor, nn

    from lowrank_ldu.finetuning.configuration import RunConfig
    from lowrank_ldu.finetuning.tasks.meta_model import MetaModel


@dataclass(frozen=True)
class LoadedTask:
    """Hold a model and its data, ready for a method and a trainer.

    Attributes
    ----------
    model : nn.Module
        With a head for the task, without an adapter.
    head : sequence of str
        Modules of the head, which are trained whole.
    task_type : str, optional
        PEFT's name of the task; None for models that take other arguments than PEFT's tasks do.
    train, validation : datasets.Dataset
        Rows as the model takes them.
    others : mapping
        Name to rows that are evaluated once, when training is over.
    collator : callable
        Makes a batch of rows.
    metric : str
        Name of the metric by which the best state is chosen; "loss" is what every evaluation has.
    data_digest : str
        Of the rows that are used.
    compute_metrics : callable, optional
        As transformers' Trainer takes it; without it an evaluation has the loss alone.
    greater_is_better : bool
        Whether more of the metric is better.
    reduce_logits : callable, optional
        reduce_logits(logits, labels), what of a batch's logits `compute_metrics` needs, where all of them are too many.
    loss : callable, optional
        loss(model, batch), a scalar tensor; model(**batch).loss if not given.
    evaluations : mapping
        Name to a function from the finished model to metrics, for what no rows of a split tell. They are run once, as
        the rows of `others` are.
    load_evaluations : callable, optional
        Loads what they need. It is called before training where they will be run.
    callbacks : callable, optional
        callbacks(folder), a list of transformers' TrainerCallback; what they write belongs in the run's folder.
    obstacle_to_sharding : str, optional
        Why the model cannot be sharded over processes.
    counts_items : bool
        Whether the model divides its loss by the number of labels in all accumulated batches of all processes, as
        causal language models do. False where it is the mean over a batch.
    """

    model: nn.Module
    head: Sequence[str]
    task_type: str | None
    train: Any
    validation: Any
    collator: Callable[[Any], Any]
    metric: str
    data_digest: str
    compute_metrics: Callable[[Any], dict[str, float]] | None = None
    greater_is_better: bool = True
    reduce_logits: Callable[[Any, Tensor], Tensor] | None = None
    others: Mapping[str, Any] = field(default_factory=dict)
    loss: Callable[[nn.Module, Any], Tensor] | None = None
    evaluations: Mapping[str, Callable[[nn.Module], dict[str, float]]] = field(default_factory=dict)
    load_evaluations: Callable[[], None] | None = None
    callbacks: Callable[[Path], list[Any]] | None = None
    obstacle_to_sharding: str | None = None
    counts_items: bool = False


class Kind(Protocol):
    """Offer a kind of tasks.

    Attributes
    ----------
    TASKS : mapping
        Names of its tasks, and what each one is.
    OPTIONS : mapping
        Names of its own options in recipes, and their defaults.
    """

    TASKS: Mapping[str, Any]
    OPTIONS: Mapping[str, Any]

    def checked_options(self, given: Mapping[str, Any]) -> dict[str, Any]:
        """Check its own options, and fill in the defaults."""

    def load(self, config: RunConfig) -> LoadedTask:
        """Load the model and the data of a run."""

    def meta_model(self, config: RunConfig, *, download: bool) -> MetaModel | None:
        """Build the model of a run without numbers; None where that cannot be."""
