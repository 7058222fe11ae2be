"""Compare fine-tuning methods on one pre-trained network.

Several seeds, with the same batches and steps for all methods.
"""

from __future__ import annotations

import copy
import math
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from lowrank_ldu.demo.methods import Method, default_methods
from lowrank_ldu.finetuning.digits.data import DEFAULT_SHIFT, DigitsSplit, Images, load_digits_split
from lowrank_ldu.finetuning.digits.determinism import single_threaded
from lowrank_ldu.finetuning.digits.network import VisionTransformerSettings
from lowrank_ldu.finetuning.digits.pretraining import LEARNING_RATE, PRETRAINING
from lowrank_ldu.finetuning.digits.pretraining import pretrain as pretrain_network
from lowrank_ldu.finetuning.digits.training import StepCallback, TrainingResult, TrainingSettings, accuracy, train

if TYPE_CHECKING:
    from torch import nn

    from lowrank_ldu.finetuning.digits.prepared import PreparedModel


@dataclass(frozen=True)
class ComparisonSettings:
    """Hold the settings of a comparison; the default is the demo.

    Attributes
    ----------
    seeds : tuple of int
        Fine-tuning seeds: order of the batches and random initializations. At least one.
    split_seed : int
        Seed of the split of the data and of the pre-trained network.
    shift : str
        Rendering of the fine-tuning task, a key of `lowrank_ldu.finetuning.digits.data.SHIFTS`.
    network : VisionTransformerSettings
        Shape of the network.
    pretraining, fine_tuning : TrainingSettings
        Budgets.
    pretraining_learning_rate : float
        Peak learning rate of the pre-training.
    """

    seeds: tuple[int, ...] = (0, 1, 2)
    split_seed: int = 0
    shift: str = DEFAULT_SHIFT
    network: VisionTransformerSettings = field(default_factory=VisionTransformerSettings)
    pretraining: TrainingSettings = PRETRAINING
    fine_tuning: TrainingSettings = field(default_factory=TrainingSettings)
    pretraining_learning_rate: float = LEARNING_RATE


@dataclass(frozen=True)
class ComparisonProgress:
    """Report how far a comparison is.

    Attributes
    ----------
    stage : str
        What runs now, for people.
    step, total : int
        Optimizer steps done and in all, over the whole comparison.
    """

    stage: str
    step: int
    total: int


ProgressCallback = Callable[[ComparisonProgress], None]


@dataclass(frozen=True, eq=False)
class Pretrained:
    """Hold the network that every method starts from.

    Attributes
    ----------
    model : torch.nn.Module
        Trained on the upright images; the methods get copies of it.
    upright_accuracy : float
        On the test images upright, in [0, 1].
    shifted_accuracy : float
        On the same images in the shifted rendering, before any fine-tuning.
    seconds : float
        Wall-clock time of the training loop.
    """

    model: nn.Module
    upright_accuracy: float
    shifted_accuracy: float
    seconds: float


@dataclass(frozen=True, eq=False)
class MethodResult:
    """Hold the results of one method over all seeds.

    Attributes
    ----------
    method : Method
        The method, with its name and learning rate.
    adapter_parameters : int
        Trained scalars without the head, the paper's count.
    total_parameters : int
        Trained scalars with the head.
    runs : tuple of TrainingResult
        One for each seed, in the settings' order.
    test_images : int
        Number of images the accuracies are measured on.
    model : torch.nn.Module
        The trained model of the first seed.
    """

    method: Method
    adapter_parameters: int
    total_parameters: int
    runs: tuple[TrainingResult, ...]
    test_images: int
    model: nn.Module

    @property
    def accuracies(self) -> tuple[float, ...]:
        """Test accuracy of each seed, in [0, 1]."""
        return tuple(run.accuracy for run in self.runs)

    @property
    def mean_accuracy(self) -> float:
        """Mean test accuracy over the seeds, in [0, 1]."""
        return statistics.fmean(self.accuracies)

    @property
    def initial_accuracy(self) -> float:
        """Mean test accuracy before the first step, in [0, 1].

        The mean is over the seeds.
        """
        return statistics.fmean(run.initial_accuracy for run in self.runs)

    @property
    def standard_deviation(self) -> float:
        """Standard deviation of the accuracy between seeds.

        With n - 1 in the denominator; nan for one seed.
        """
        return statistics.stdev(self.accuracies) if len(self.runs) > 1 else math.nan

    @property
    def standard_error(self) -> float:
        """Standard error of the mean accuracy: sqrt(p (1 - p) / N).

        It is that of the draw of the test images.

        All seeds share one test set, so more seeds do not make it smaller, and the spread between seeds comes on top.
        The methods share the test set too: in the difference of two methods part of this error cancels.
        """
        return math.sqrt(self.mean_accuracy * (1.0 - self.mean_accuracy) / self.test_images)

    @property
    def seconds(self) -> float:
        """Mean wall-clock time of the training loop."""
        return statistics.fmean(run.seconds for run in self.runs)


@dataclass(frozen=True, eq=False)
class Comparison:
    """Hold the results of all methods.

    Attributes
    ----------
    settings : ComparisonSettings
        What was run.
    split : DigitsSplit
        The data.
    pretrained : Pretrained
        The common start.
    results : tuple of MethodResult
        One for each method, in the order given.
    seconds : float
        Wall-clock time of everything.
    """

    settings: ComparisonSettings
    split: DigitsSplit
    pretrained: Pretrained
    results: tuple[MethodResult, ...]
    seconds: float


@single_threaded()
def pretrain(split: DigitsSplit, settings: ComparisonSettings, *, on_step: StepCallback | None = None) -> Pretrained:
    """Train the network on the upright digits.

    Parameters
    ----------
    split : DigitsSplit
        The data; only ``pretraining`` is trained on.
    settings : ComparisonSettings
        Network, budget and seed.
    on_step : callable, optional
        Told of each step.

    Returns
    -------
    Pretrained
        The network and its accuracies.

    Raises
    ------
    ImportError
        transformers is not installed.
    """
    model, result = pretrain_network(
        split,
        network=settings.network,
        settings=settings.pretraining,
        learning_rate=settings.pretraining_learning_rate,
        seed=settings.split_seed,
        on_step=on_step,
    )
    return Pretrained(model, result.accuracy, accuracy(model, split.test), result.seconds)


@single_threaded()
def fine_tune(
    pretrained: Pretrained,
    method: Method,
    training: Images,
    evaluation: Images,
    *,
    seed: int,
    settings: TrainingSettings,
    on_step: StepCallback | None = None,
) -> tuple[PreparedModel, TrainingResult]:
    """Fine-tune a copy of the pre-trained network.

    Parameters
    ----------
    pretrained : Pretrained
        The start; it is not changed.
    method : Method
        What to train, and its learning rate.
    training, evaluation : Images
        Images trained on, and images measured on.
    seed : int
        Seed of the batches' order and of the method's initialization.
    settings : TrainingSettings
        Budget.
    on_step : callable, optional
        Told of each step.

    Returns
    -------
    prepared : PreparedModel
        The trained copy.
    result : TrainingResult
        Accuracies and time.
    """
    prepared = method.prepare(copy.deepcopy(pretrained.model), training, seed=seed)
    result = train(
        prepared,
        training,
        evaluation,
        learning_rate=method.learning_rate,
        seed=seed,
        settings=settings,
        on_step=on_step,
    )
    return prepared, result


def compare_methods(
    methods: Sequence[Method] | None = None,
    settings: ComparisonSettings | None = None,
    *,
    on_progress: ProgressCallback | None = None,
) -> Comparison:
    """Compare fine-tuning methods on real digits.

    A small vision transformer is pre-trained, and fine-tuned on another rendering.

    For one seed all methods see the same batches for the same number of steps. Accuracies are those after the last
    step, on test images that neither training nor the choice of learning rates has seen.

    Parameters
    ----------
    methods : sequence of Method, optional
        Methods and learning rates; `lowrank_ldu.demo.methods.default_methods` by default.
    settings : ComparisonSettings, optional
        Data, network, budgets and seeds.
    on_progress : callable, optional
        Told of each optimizer step.

    Returns
    -------
    Comparison
        The pre-trained network, and for each method the accuracies, sizes, times and first trained model.

    Raises
    ------
    ValueError
        No seed is given, or the shift is unknown.
    ImportError
        A package of the ``finetune`` extra is not installed.
    """
    methods = default_methods() if methods is None else methods
    settings = settings or ComparisonSettings()
    if not settings.seeds:
        raise ValueError("seeds is empty; accepted: at least one integer")
    start = time.perf_counter()
    split = load_digits_split(settings.split_seed, shift=settings.shift)
    runs = len(methods) * len(settings.seeds)
    total = settings.pretraining.steps(len(split.pretraining))
    total += runs * settings.fine_tuning.steps(len(split.training))
    count = _StepCounter(total, on_progress)

    pretrained = pretrain(split, settings, on_step=count.stage("pre-training"))
    results = tuple(_run_method(method, pretrained, split, settings, count) for method in methods)
    return Comparison(settings, split, pretrained, results, time.perf_counter() - start)


def _run_method(
    method: Method, pretrained: Pretrained, split: DigitsSplit, settings: ComparisonSettings, count: _StepCounter
) -> MethodResult:
    trained = [
        fine_tune(
            pretrained,
            method,
            split.training,
            split.test,
            seed=seed,
            settings=settings.fine_tuning,
            on_step=count.stage(f"{method.name}, seed {seed}"),
        )
        for seed in settings.seeds
    ]
    first, _ = trained[0]
    return MethodResult(
        method=method,
        adapter_parameters=first.adapter_parameters,
        total_parameters=first.total_parameters,
        runs=tuple(result for _, result in trained),
        test_images=len(split.test),
        model=first.model,
    )


class _StepCounter:
    """Add up the steps of successive trainings."""

    def __init__(self, total: int, on_progress: ProgressCallback | None) -> None:
        self._total = total
        self._done = 0
        self._on_progress = on_progress

    def stage(self, name: str) -> StepCallback | None:
        on_progress = self._on_progress
        if on_progress is None:
            return None

        def on_step(_step: int, _steps: int, _loss: float) -> None:
            self._done += 1
            on_progress(ComparisonProgress(name, self._done, self._total))

        return on_step
