import math
import statistics

import pytest
import torch

from lowrank_ldu.demo import (
    ComparisonSettings,
    FullFineTuning,
    LinearProbe,
    LoLDUMethod,
    LoRAMethod,
    MethodResult,
    PiSSAMethod,
    Pretrained,
    TrainingResult,
    TrainingSettings,
    VisionTransformerSettings,
    compare_methods,
    grid,
)
from lowrank_ldu.demo.grid import GridResult, search_learning_rates

METHODS = (
    LinearProbe(1e-1),
    LoLDUMethod(1e-1, rank=32),
    LoRAMethod(3e-2, rank=4),
    PiSSAMethod(3e-2, rank=4),
    FullFineTuning(1e-3),
)
SETTINGS = ComparisonSettings(
    seeds=(0, 1),
    network=VisionTransformerSettings(width=32, layers=2, heads=2, feed_forward=64),
    pretraining=TrainingSettings(epochs=20),
    fine_tuning=TrainingSettings(epochs=6),
    pretraining_learning_rate=3e-3,
)


@pytest.fixture(scope="module")
def progress():
    return []


@pytest.fixture(scope="module")
def comparison(progress):
    return compare_methods(METHODS, SETTINGS, on_progress=progress.append)


def test_every_method_starts_from_the_same_function_and_improves(comparison):
    start = comparison.pretrained.shifted_accuracy

    for result in comparison.results:
        # PiSSA's frozen weight is a rounded difference: one image on a class boundary may tip over.
        slack = 1 / 747 if isinstance(result.method, PiSSAMethod) else 0.0
        assert all(abs(run.initial_accuracy - start) <= slack for run in result.runs), result.method.name
        assert all(run.accuracy > start + 0.05 for run in result.runs), result.method.name


def test_pretraining_learns_the_upright_digits(comparison):
    assert comparison.pretrained.upright_accuracy > 0.5
    assert comparison.pretrained.seconds > 0.0


def test_results_follow_the_methods_and_seeds_given(comparison):
    assert [result.method for result in comparison.results] == list(METHODS)
    assert all(len(result.runs) == 2 for result in comparison.results)
    assert all(result.test_images == 747 for result in comparison.results)
    assert all(0.0 < result.seconds < comparison.seconds for result in comparison.results)
    # 4 projections of width 32: r + 1 each; the head is 32 x 10 + 10.
    loldu = comparison.results[1]
    assert (loldu.adapter_parameters, loldu.total_parameters) == (4 * 33, 4 * 33 + 330)


def test_the_kept_model_is_the_first_seeds(comparison):
    test = comparison.split.test
    for result in comparison.results:
        with torch.no_grad():
            right = result.model(test.pixels).logits.argmax(dim=1) == test.labels
        assert right.double().mean().item() == result.accuracies[0], result.method.name


def test_progress_counts_every_step_once(comparison, progress):
    total = 20 * 10 + len(comparison.results) * 2 * 6 * 5

    assert [event.step for event in progress] == list(range(1, total + 1))
    assert {event.total for event in progress} == {total}
    assert progress[0].stage == "pre-training"
    assert progress[-1].stage == "full fine-tuning, seed 1"


def test_the_same_settings_give_the_same_accuracies(comparison):
    methods = METHODS[1:3]
    again = compare_methods(methods, SETTINGS)

    assert again.pretrained.upright_accuracy == comparison.pretrained.upright_accuracy
    assert [result.accuracies for result in again.results] == [r.accuracies for r in comparison.results[1:3]]


def test_statistics_of_the_seeds(network):
    accuracies = (0.8, 0.9, 0.85)
    runs = tuple(TrainingResult(initial_accuracy=0.1, accuracy=value, seconds=2.0) for value in accuracies)
    result = MethodResult(LinearProbe(1e-2), 0, 170, runs, 100, network)

    assert result.mean_accuracy == pytest.approx(0.85)
    assert result.standard_deviation == pytest.approx(statistics.stdev(accuracies))
    assert result.standard_error == pytest.approx(math.sqrt(0.85 * 0.15 / 100))
    assert result.initial_accuracy == pytest.approx(0.1)
    assert result.seconds == pytest.approx(2.0)
    assert math.isnan(MethodResult(LinearProbe(1e-2), 0, 170, runs[:1], 100, network).standard_deviation)


def test_no_seed_is_refused():
    with pytest.raises(ValueError, match="seed"):
        compare_methods(METHODS, ComparisonSettings(seeds=()))


def test_the_grid_keeps_the_rate_of_highest_validation_accuracy(comparison):
    result = search_learning_rates(METHODS[0], comparison.pretrained, comparison.split, SETTINGS, (1e-6, 1e-1))

    assert result.name == "linear probe"
    assert list(result.accuracies) == [1e-6, 1e-1]
    assert result.best == 1e-1


def test_of_equal_rates_the_smaller_is_kept():
    assert GridResult("any", {0.3: 0.5, 0.1: 0.5, 0.03: 0.4}).best == 0.1


def test_the_grid_command_writes_a_line_for_each_method(monkeypatch, capsys, network):
    monkeypatch.setattr(grid, "pretrain", lambda *_: Pretrained(network, 0.0, 0.0, 0.0))
    monkeypatch.setattr(grid, "default_methods", lambda: (LinearProbe(1e-2), LoLDUMethod(1e-2, rank=4)))
    monkeypatch.setattr(grid, "LEARNING_RATES", (1e-2,))
    monkeypatch.setattr(grid, "GRID_SEEDS", (0,))
    monkeypatch.setattr("sys.argv", ["grid"])

    grid.main()

    header, probe, loldu = capsys.readouterr().out.splitlines()
    assert header.split() == ["validation", "accuracy,", "%", "0.01", "best"]
    assert probe.startswith("linear probe")
    assert loldu.startswith("LoLDU r=4")
