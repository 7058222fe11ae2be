"""Pre-training of the small network: which images a step sees, at which rate, and that a seed says it all."""

from itertools import chain

import pytest
import torch
from torch import nn

from lowrank_ldu.finetuning.digits import pretraining
from lowrank_ldu.finetuning.digits.data import Images, load_digits_split
from lowrank_ldu.finetuning.digits.pretraining import PretrainingSettings, accuracy, pretrain


class Output:
    def __init__(self, logits: torch.Tensor) -> None:
        self.logits = logits


class Recorder(nn.Module):
    """One weight; keeps the images it was shown while training, and the weight's value and the threads then."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))
        self.weights: list[float] = []
        self.seen: list[list[float]] = []
        self.threads: set[int] = set()

    def forward(self, pixels: torch.Tensor) -> Output:
        values = pixels.flatten(1).sum(1)
        if self.training:
            self.seen.append(values.tolist())
            self.weights.append(self.weight.item())
            self.threads.add(torch.get_num_threads())
        # The gradient has one sign whatever the batch, so an Adam step has the length of its learning rate.
        return Output(torch.stack([self.weight.expand(len(values)), torch.zeros(len(values))], dim=1))


@pytest.fixture
def images() -> Images:
    return Images(torch.arange(10.0).view(10, 1, 1, 1), torch.zeros(10, dtype=torch.int64))


@pytest.fixture
def _recorded(monkeypatch):
    monkeypatch.setattr(pretraining, "build_vision_transformer", lambda network, seed: Recorder())


@pytest.mark.usefixtures("_recorded")
def test_every_epoch_shows_every_image_once_in_an_order_given_by_the_seed(images):
    def batches(seed: int) -> list[list[float]]:
        return pretrain(images, seed=seed, settings=PretrainingSettings(epochs=2, batch_size=4)).seen

    seen = batches(0)

    assert [len(batch) for batch in seen] == [4, 4, 2, 4, 4, 2]
    assert sorted(chain(*seen[:3])) == sorted(chain(*seen[3:])) == list(range(10))
    assert seen[:3] != seen[3:]
    assert seen == batches(0)
    assert seen != batches(1)


@pytest.mark.usefixtures("_recorded")
def test_the_learning_rate_rises_linearly_then_falls_linearly(images):
    settings = PretrainingSettings(epochs=10, batch_size=10, learning_rate=0.01, warmup_ratio=0.3)
    model = pretrain(images, settings=settings)

    steps = torch.tensor([*model.weights, model.weight.item()]).diff()

    # Three steps of warm-up, and the falling part starts at the peak. Vectors do not decay.
    factors = torch.tensor([1 / 4, 2 / 4, 3 / 4, *(1 - k / 7 for k in range(7))])
    torch.testing.assert_close(steps, 0.01 * factors, rtol=1e-2, atol=1e-6)


@pytest.mark.usefixtures("_recorded")
def test_a_single_step_is_taken_at_the_peak_rate(images):
    model = pretrain(images, settings=PretrainingSettings(epochs=1, batch_size=10, learning_rate=0.01))

    assert model.weight.item() == pytest.approx(0.01, rel=1e-3)


def test_the_same_seed_gives_the_same_weights_and_another_others(small):
    images = load_digits_split().validation

    def trained(seed: int) -> dict[str, torch.Tensor]:
        return pretrain(images, network=small, settings=PretrainingSettings(epochs=1), seed=seed).state_dict()

    first, again, other = trained(5), trained(5), trained(6)

    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not any(torch.equal(first[name], other[name]) for name in first if name.endswith("query.weight"))


def test_matrices_decay(small):
    """With one step: the gradients and Adam's step of them do not depend on the decay."""
    images = load_digits_split().validation

    def trained(decay: float) -> dict[str, torch.Tensor]:
        settings = PretrainingSettings(epochs=1, batch_size=len(images), learning_rate=0.1, weight_decay=decay)
        return pretrain(images, network=small, settings=settings).state_dict()

    started = pretraining.build_vision_transformer(small, seed=0).state_dict()
    without, decayed = trained(0.0), trained(0.5)
    for name, start in started.items():
        shrunk = 0.1 * 0.5 * start if start.ndim > 1 else torch.zeros_like(start)
        torch.testing.assert_close(without[name] - decayed[name], shrunk, rtol=1e-4, atol=1e-6)


def test_accuracy_is_the_part_classified_rightly(images):
    model = Recorder()
    nn.init.ones_(model.weight)  # always says class 0
    labels = torch.tensor([0, 0, 0, 1, 1, 1, 1, 1, 1, 1])

    assert accuracy(model, Images(images.pixels, labels)) == pytest.approx(0.3)


@pytest.mark.usefixtures("_recorded")
def test_training_runs_on_one_thread_and_restores_the_thread_count(images):
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        model = pretrain(images, settings=PretrainingSettings(epochs=1, batch_size=10))
        assert model.threads == {1}
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
