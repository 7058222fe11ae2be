"""Train a model: one loop for every method.

AdamW, a linear schedule with warm-up, and a fixed number of epochs.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import nn

from lowrank_ldu.finetuning.digits.determinism import single_threaded

if TYPE_CHECKING:
    from lowrank_ldu.finetuning.digits.data import Images
    from lowrank_ldu.finetuning.digits.prepared import PreparedModel

StepCallback = Callable[[int, int, float], None]
"""Called after each step with the steps done, the steps in all, and the step's loss (mean cross-entropy in nats)."""


@dataclass(frozen=True)
class TrainingSettings:
    """Hold the settings that all methods share.

    Attributes
    ----------
    epochs : int
        Passes over the training images.
    batch_size : int
        Images in a step; the last batch of an epoch may be smaller.
    weight_decay : float
        AdamW's decoupled decay, applied to matrices only.
    warmup_ratio : float
        Part of the steps, in [0, 1), in which the learning rate rises linearly from 0 to its peak; it then falls
        linearly to 0.
    """

    epochs: int = 30
    batch_size: int = 64
    weight_decay: float = 0.01
    warmup_ratio: float = 0.06

    def steps(self, images: int) -> int:
        """Count the optimizer steps.

        Parameters
        ----------
        images : int
            Number of training images.

        Returns
        -------
        int
            Steps of the whole training.
        """
        return self.epochs * math.ceil(images / self.batch_size)


@dataclass(frozen=True)
class TrainingResult:
    """Hold the accuracies and the time of one training.

    Attributes
    ----------
    initial_accuracy, accuracy : float
        Part of the evaluation images classified rightly before the first and after the last step, in [0, 1].
    seconds : float
        Wall-clock time of the loop: batches, forward, backward, optimizer and projection, without the evaluations.
    """

    initial_accuracy: float
    accuracy: float
    seconds: float


@single_threaded()
def train(
    prepared: PreparedModel,
    training: Images,
    evaluation: Images,
    *,
    learning_rate: float,
    seed: int,
    settings: TrainingSettings | None = None,
    on_step: StepCallback | None = None,
) -> TrainingResult:
    """Train a prepared model in place.

    Parameters
    ----------
    prepared : PreparedModel
        Model and trained parameters.
    training, evaluation : Images
        Images trained on, and images measured on.
    learning_rate : float
        Peak learning rate of all trained parameters.
    seed : int
        Seed of the batches' order: two methods with one seed see the same batches.
    settings : TrainingSettings, optional
        Budget and optimizer.
    on_step : callable, optional
        Told of each step; its time counts in the result's seconds.

    Returns
    -------
    TrainingResult
        Accuracies and time. The same call gives the same accuracies on the same machine: it runs on one thread. A
        training that diverges is not hidden: its accuracy is that of guessing.

    Raises
    ------
    ValueError
        The warm-up ratio is outside [0, 1).
    """
    settings = settings or TrainingSettings()
    model = prepared.model
    initial_accuracy = accuracy(model, evaluation)
    total = settings.steps(len(training))
    schedule = _warmup_then_linear(total, settings.warmup_ratio)
    optimizer = torch.optim.AdamW(prepared.parameter_groups(settings.weight_decay), lr=learning_rate)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, schedule)
    generator = torch.Generator().manual_seed(seed)

    model.train()
    start = time.perf_counter()
    done = 0
    for _ in range(settings.epochs):
        for batch in torch.split(torch.randperm(len(training), generator=generator), settings.batch_size):
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy(model(training.pixels[batch]).logits, training.labels[batch])
            torch.autograd.backward(loss)
            optimizer.step()
            scheduler.step()
            if prepared.after_step is not None:
                prepared.after_step(model)
            done += 1
            if on_step is not None:
                on_step(done, total, loss.item())
    seconds = time.perf_counter() - start
    return TrainingResult(initial_accuracy, accuracy(model, evaluation), seconds)


@single_threaded()
@torch.no_grad()
def accuracy(model: nn.Module, images: Images) -> float:
    """Measure the part of the images that is classified rightly.

    The model is left in evaluation mode.

    Parameters
    ----------
    model : torch.nn.Module
        Classifier whose output has ``logits`` (N, classes).
    images : Images
        Labeled images.

    Returns
    -------
    float
        In [0, 1].
    """
    model.eval()
    right = model(images.pixels).logits.argmax(dim=1) == images.labels
    return float(right.double().mean())


def _warmup_then_linear(total: int, warmup_ratio: float) -> Callable[[int], float]:
    if not 0.0 <= warmup_ratio < 1.0:
        raise ValueError(f"warmup_ratio is {warmup_ratio}; accepted: at least 0 and below 1")
    warmup = int(warmup_ratio * total)  # less than total, so that the falling part is never empty

    def factor(step: int) -> float:
        # step counts from 0: the first step is not one of size 0, and the peak is the first step after the warm-up.
        return (step + 1) / (warmup + 1) if step < warmup else (total - step) / (total - warmup)

    return factor
