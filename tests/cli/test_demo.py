"""The demonstration on a small budget: what it writes, that the adapter comes back, and what it refuses."""

import csv
import math
import re
import sys

import pytest
import torch
from safetensors.torch import load_file
from typer.testing import CliRunner

import lowrank_ldu.demo
from lowrank_ldu.cli.app import app
from lowrank_ldu.demo import (
    ComparisonSettings,
    LinearProbe,
    LoLDUMethod,
    TrainingSettings,
    VisionTransformerSettings,
    compare_methods,
)
from lowrank_ldu.demo import round_trip as trips
from lowrank_ldu.demo.report import comparison_rows, comparison_section, percent, sentences
from lowrank_ldu.nn import lowrank_layers

SMALL = ComparisonSettings(
    seeds=(0, 1),
    network=VisionTransformerSettings(width=16, layers=1, heads=2, feed_forward=32),
    pretraining=TrainingSettings(epochs=2),
    fine_tuning=TrainingSettings(epochs=2),
)
METHODS = (
    LinearProbe(learning_rate=1e-1),
    LoLDUMethod(learning_rate=1e-1, rank=4),
    LoLDUMethod(learning_rate=1e-1, rank=16),
)


@pytest.fixture(scope="module")
def comparison():
    return compare_methods(METHODS, SMALL)


@pytest.fixture
def quick(monkeypatch, comparison):
    """The command with the small comparison in place of the default one; everything after it is real."""
    monkeypatch.setattr(lowrank_ldu.demo, "compare_methods", lambda *, on_progress: comparison)


@pytest.mark.usefixtures("quick")
def test_the_command_writes_everything_and_says_what_it_measured(tmp_path, comparison):
    out = tmp_path / "demo"
    done = CliRunner().invoke(app, ["demo", "--out", str(out)], catch_exceptions=False)
    assert done.exit_code == 0
    assert {path.name for path in out.iterdir()} == {
        "adapter.json", "adapter.safetensors", "analysis.json", "base.safetensors", "comparison.csv", "figures",
        "figures.csv", "figures.parquet", "merged.safetensors", "report.html", "tensors.csv", "tensors.parquet",
    }  # fmt: skip
    for result in comparison.results:
        assert result.method.name in done.stdout
        assert f"{100 * result.mean_accuracy:.1f}" in done.stdout
    assert "LoLDU r=16: 34 trainable parameters in 2 LoLDU layers = 2 x (16 + 1)" in done.stdout
    page = (out / "report.html").read_text(encoding="utf-8")
    assert "Fine-tuning compared" in page
    assert str(out / "base.safetensors") in page
    assert not re.search(r"""(src|href)=["']?https?:""", page)


@pytest.mark.usefixtures("quick")
def test_the_table_on_disk_has_a_row_for_each_method_and_seed(tmp_path, comparison):
    CliRunner().invoke(app, ["demo", "--out", str(tmp_path / "demo")], catch_exceptions=False)
    with (tmp_path / "demo" / "comparison.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [(row["method"], int(row["seed"])) for row in rows] == [
        (result.method.name, seed) for result in comparison.results for seed in (0, 1)
    ]
    assert [float(row["accuracy"]) for row in rows] == [
        accuracy for result in comparison.results for accuracy in result.accuracies
    ]


def test_a_folder_that_is_not_empty_is_refused_before_any_work(tmp_path, monkeypatch):
    (tmp_path / "mine.txt").write_text("mine")

    def never(**_):
        raise AssertionError("the comparison was started")

    monkeypatch.setattr(lowrank_ldu.demo, "compare_methods", never)
    done = CliRunner().invoke(app, ["demo", "--out", str(tmp_path)])
    assert done.exit_code == 2
    assert "is not empty" in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


def test_a_missing_package_is_named_with_its_extra(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    done = CliRunner().invoke(app, ["demo", "--out", str(tmp_path / "demo")])
    assert done.exit_code == 2
    assert done.stderr.startswith("error: sklearn.datasets is needed here and could not be imported: pip install")
    assert list(tmp_path.iterdir()) == []


def test_saved_reloaded_and_merged_agree(tmp_path, comparison):
    outcome = trips.round_trip(comparison, tmp_path)
    assert outcome.method == "LoLDU r=16"
    assert outcome.parameters.adapter == 34
    assert len(set(outcome.accuracies)) == 1
    assert outcome.reloaded_difference < 1e-5
    assert outcome.merged_difference < 1e-5
    assert outcome.adapter_bytes == sum(
        (tmp_path / f"adapter.{kind}").stat().st_size for kind in ("json", "safetensors")
    )
    base, merged = load_file(tmp_path / "base.safetensors"), load_file(tmp_path / "merged.safetensors")
    assert base.keys() == merged.keys()
    changed = {name for name in base if not torch.equal(base[name], merged[name])}
    trained = comparison.results[2].model
    adapted = {f"{name}.weight" for name, _ in lowrank_layers(trained)}
    assert changed == adapted | {"classifier.weight", "classifier.bias"}


def test_a_model_that_does_not_come_back_is_an_error(tmp_path, comparison, monkeypatch):
    real = trips.load_adapter

    def wrong(model, path):
        real(model, path)
        with torch.no_grad():
            next(lowrank_layers(model))[1].offset.add_(1.0)

    monkeypatch.setattr(trips, "load_adapter", wrong)
    with pytest.raises(trips.RoundTripError, match="logits of the reloaded and the merged model differ"):
        trips.round_trip(comparison, tmp_path)


def test_the_section_shows_every_cell(tmp_path, comparison):
    saved = trips.round_trip(comparison, tmp_path)
    html = str(comparison_section(comparison, saved))
    for row in comparison_rows(comparison):
        for cell in row:
            assert f">{cell}<" in html
    assert html.count("<svg") == 1
    assert sentences(comparison, saved)[3].replace("'", "&#39;") in html


@pytest.mark.parametrize(("share", "text"), [(0.5, "50.0"), (1.0, "100.0"), (math.nan, "-")])
def test_per_cent(share, text):
    assert percent(share) == text
