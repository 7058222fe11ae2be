import math
from itertools import chain

import pytest
import torch
from torch import nn

from lowrank_ldu.finetuning.digits.data import Images, load_digits_split
from lowrank_ldu.finetuning.digits.network import build_vision_transformer
from lowrank_ldu.finetuning.digits.prepared import PreparedModel
from lowrank_ldu.finetuning.digits.training import TrainingSettings, accuracy, train


class Output:
    def __init__(self, logits: torch.Tensor) -> None:
        self.logits = logits


class Recorder(nn.Module):
    """One weight; keeps the images it was shown while training and the weight's value then."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))
        self.weights: list[float] = []
        self.seen: list[list[float]] = []

    def forward(self, pixels: torch.Tensor) -> Output:
        values = pixels.flatten(1).sum(1)
        if self.training:
            self.seen.append(values.tolist())
            self.weights.append(self.weight.item())
        # The gradient has one sign whatever the batch, so an Adam step has the length of its learning rate.
        return Output(torch.stack([self.weight.expand(len(values)), torch.zeros(len(values))], dim=1))


@pytest.fixture
def images() -> Images:
    return Images(torch.arange(10.0).view(10, 1, 1, 1), torch.zeros(10, dtype=torch.int64))


def test_every_epoch_shows_every_image_once_in_an_order_given_by_the_seed(images):
    def batches(seed: int) -> list[list[float]]:
        model = Recorder()
        settings = TrainingSettings(epochs=2, batch_size=4)
        train(PreparedModel(model), images, images, learning_rate=1e-3, seed=seed, settings=settings)
        return model.seen

    seen = batches(0)

    assert [len(batch) for batch in seen] == [4, 4, 2, 4, 4, 2]
    assert sorted(chain(*seen[:3])) == sorted(chain(*seen[3:])) == list(range(10))
    assert seen[:3] != seen[3:]
    assert seen == batches(0)
    assert seen != batches(1)


def test_the_learning_rate_rises_linearly_then_falls_linearly(images):
    model = Recorder()
    settings = TrainingSettings(epochs=10, batch_size=10, warmup_ratio=0.3, weight_decay=0.0)
    train(PreparedModel(model), images, images, learning_rate=0.01, seed=0, settings=settings)

    steps = torch.tensor([*model.weights, model.weight.item()]).diff()

    # Three steps of warm-up, and the falling part starts at the peak.
    factors = torch.tensor([1 / 4, 2 / 4, 3 / 4, *(1 - k / 7 for k in range(7))])
    torch.testing.assert_close(steps, 0.01 * factors, rtol=1e-2, atol=1e-6)


def test_a_single_step_is_taken_at_the_peak_rate(images):
    model = Recorder()
    settings = TrainingSettings(epochs=1, batch_size=10, weight_decay=0.0)
    train(PreparedModel(model), images, images, learning_rate=0.01, seed=0, settings=settings)

    assert model.weight.item() == pytest.approx(0.01, rel=1e-3)


def test_callbacks_see_every_step_after_the_projection(images):
    seen = []
    projected = []
    prepared = PreparedModel(Recorder(), after_step=projected.append)
    settings = TrainingSettings(epochs=3, batch_size=4)

    train(
        prepared,
        images,
        images,
        learning_rate=1e-3,
        seed=0,
        settings=settings,
        on_step=lambda step, total, loss: seen.append((step, total, len(projected), math.isfinite(loss))),
    )

    assert settings.steps(len(images)) == 9
    assert seen == [(step, 9, step, True) for step in range(1, 10)]
    assert projected == [prepared.model] * 9


def test_the_same_seed_gives_the_same_weights(small):
    split = load_digits_split()

    def trained() -> dict[str, torch.Tensor]:
        prepared = PreparedModel(build_vision_transformer(small))
        train(
            prepared,
            split.training,
            split.validation,
            learning_rate=1e-3,
            seed=5,
            settings=TrainingSettings(epochs=1),
        )
        return prepared.model.state_dict()

    first, again = trained(), trained()

    assert all(torch.equal(first[name], again[name]) for name in first)


def test_accuracy_is_the_part_classified_rightly(images):
    model = Recorder()
    nn.init.ones_(model.weight)  # always says class 0
    labels = torch.tensor([0, 0, 0, 1, 1, 1, 1, 1, 1, 1])

    assert accuracy(model, Images(images.pixels, labels)) == pytest.approx(0.3)


@pytest.mark.parametrize("ratio", [-0.1, 1.0])
def test_a_warmup_that_leaves_no_training_is_refused(ratio, images):
    with pytest.raises(ValueError, match="warmup_ratio is .*; accepted: "):
        train(
            PreparedModel(Recorder()),
            images,
            images,
            learning_rate=1e-3,
            seed=0,
            settings=TrainingSettings(warmup_ratio=ratio),
        )


def test_training_runs_on_one_thread_and_restores_the_thread_count(images):
    seen = []
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        train(
            PreparedModel(Recorder()),
            images,
            images,
            learning_rate=1e-3,
            seed=0,
            settings=TrainingSettings(epochs=1, batch_size=10),
            on_step=lambda *_: seen.append(torch.get_num_threads()),
        )
        assert seen == [1]
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
