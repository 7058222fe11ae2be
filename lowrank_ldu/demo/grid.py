"""Search for the learning rates of the default methods.

``python -m lowrank_ldu.demo.grid`` runs it.

Every method gets the same candidates, the same budget and the same images; the test images are not looked at.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final

from lowrank_ldu.demo.comparison import ComparisonSettings, Pretrained, fine_tune, pretrain
from lowrank_ldu.demo.methods import Method, default_methods
from lowrank_ldu.finetuning.digits.data import DEFAULT_SHIFT, SHIFTS, DigitsSplit, load_digits_split

if TYPE_CHECKING:
    from collections.abc import Sequence

LEARNING_RATES: Final = (3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1, 3e-1)
GRID_SEEDS: Final = (0, 1)


@dataclass(frozen=True)
class GridResult:
    """Hold the validation accuracy at each learning rate.

    Attributes
    ----------
    name : str
        The method's name.
    accuracies : dict of float to float
        Mean validation accuracy over the seeds, in [0, 1], by learning rate.
    """

    name: str
    accuracies: dict[float, float]

    @property
    def best(self) -> float:
        """Learning rate of highest accuracy; of several, the smallest."""
        return min(self.accuracies, key=lambda rate: (-self.accuracies[rate], rate))


def search_learning_rates(
    method: Method,
    pretrained: Pretrained,
    split: DigitsSplit,
    settings: ComparisonSettings,
    learning_rates: Sequence[float] = LEARNING_RATES,
) -> GridResult:
    """Fine-tune at each candidate rate and measure on the validation images.

    Parameters
    ----------
    method : Method
        A dataclass with a ``learning_rate`` field, which is replaced by the candidates.
    pretrained : Pretrained
        The start; it is not changed.
    split : DigitsSplit
        The data; ``training`` and ``validation`` are used.
    settings : ComparisonSettings
        Budget and seeds.
    learning_rates : sequence of float
        Candidates.

    Returns
    -------
    GridResult
        Accuracy by learning rate.
    """
    accuracies = {}
    for rate in learning_rates:
        candidate = replace(method, learning_rate=rate)
        runs = (
            fine_tune(pretrained, candidate, split.training, split.validation, seed=seed, settings=settings.fine_tuning)
            for seed in settings.seeds
        )
        accuracies[rate] = statistics.fmean(result.accuracy for _, result in runs)
    return GridResult(method.name, accuracies)


def main() -> None:
    """Search for every default method and write one line for each."""
    parser = argparse.ArgumentParser(prog="python -m lowrank_ldu.demo.grid", description=__doc__)
    parser.add_argument("--shift", choices=SHIFTS, default=DEFAULT_SHIFT, help="rendering of the fine-tuning task")
    settings = ComparisonSettings(seeds=GRID_SEEDS, shift=parser.parse_args().shift)
    split = load_digits_split(settings.split_seed, shift=settings.shift)
    pretrained = pretrain(split, settings)
    rates = "".join(f"{rate:>8g}" for rate in LEARNING_RATES)
    sys.stdout.write(f"{'validation accuracy, %':<22}{rates}{'best':>8}\n")
    for method in default_methods():
        result = search_learning_rates(method, pretrained, split, settings)
        cells = "".join(f"{100 * result.accuracies[rate]:>8.1f}" for rate in LEARNING_RATES)
        sys.stdout.write(f"{result.name:<22}{cells}{result.best:>8g}\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
