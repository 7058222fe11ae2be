"""The demonstration on a small budget: what it writes, that the adapter comes back, and what it refuses."""

import dataclasses
import re
import sys

import pandas as pd
import pytest
import torch
from safetensors.torch import load_file
from tiny_images import pretrain_briefly
from typer.testing import CliRunner

from lowrank_ldu.cli.app import app
from lowrank_ldu.demo import round_trip as trips
from lowrank_ldu.errors import RoundTripError
from lowrank_ldu.finetuning import comparison as comparing
from lowrank_ldu.finetuning.comparison import compare_methods, plan_comparison, select_entries
from lowrank_ldu.finetuning.recipe import load_recipe
from lowrank_ldu.nn import lowrank_layers

ENTRIES = ("head", "loldu-32", "loldu-96", "lora-8")


@pytest.fixture(scope="module", autouse=True)
def _pretrained_briefly(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        pretrain_briefly(patch, tmp_path_factory.mktemp("cache"))
        yield


@pytest.fixture(scope="module")
def small():
    recipe = load_recipe("digits")
    selection = select_entries(recipe, ENTRIES, comparison="demo")
    quick = {"num_train_epochs": 1, "eval_delay": 0}
    entries = tuple(dataclasses.replace(each, settings={**each.settings, **quick}) for each in selection.entries)
    return dataclasses.replace(selection, entries=entries, seeds=1)


@pytest.fixture(scope="module")
def done(small, tmp_path_factory):
    """Run the command with fewer entries, seeds and epochs, pre-training's too; everything else is real."""
    out = tmp_path_factory.mktemp("demo") / "out"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(comparing, "select_entries", lambda *_, **__: small)
        return out, CliRunner().invoke(app, ["demo", "--out", str(out)], catch_exceptions=False)


def test_the_command_writes_everything_and_says_what_it_measured(done):
    out, result = done
    assert result.exit_code == 0, result.output
    assert {path.name for path in out.iterdir()} >= {
        "analysis.json", "base.safetensors", "merged.safetensors", "methods.csv", "plots", "report.html",
        "runs", "runs.csv", "table.md",
    }  # fmt: skip
    rows = pd.read_csv(out / "methods.csv").set_index("entry")
    assert tuple(rows.index) == ENTRIES
    assert list(rows["numbers"]) == [0, 8 * 33, 8 * 97, 12_288]
    for name in ENTRIES:
        assert name in result.stdout
        assert f"{100 * rows.loc[name, 'mean']:.1f}" in result.stdout
    assert "LoLDU r=96: 776 trainable parameters in 8 LoLDU layers = 8 x (96 + 1)" in result.stdout
    page = (out / "report.html").read_text(encoding="utf-8")
    assert "Fine-tuning compared" in page
    assert str(out / "base.safetensors") in page
    for title in rows["title"]:
        assert f">{title}<" in page
    assert not re.search(r"""(src|href)=["']?https?:""", page)


def test_merged_weights_differ_in_the_adapted_layers_and_the_head(done):
    out, _ = done
    base, merged = load_file(out / "base.safetensors"), load_file(out / "merged.safetensors")
    assert base.keys() == merged.keys()
    changed = {name for name in base if not torch.equal(base[name], merged[name])}
    assert len(changed) == 8 + 2
    assert {"classifier.weight", "classifier.bias"} < changed
    assert all(re.search(r"(query|value|q_proj|v_proj)\.weight$|^classifier\.", name) for name in changed)


def test_a_model_that_does_not_come_back_is_an_error(done, small, tmp_path, monkeypatch):
    out, _ = done
    trained = compare_methods(plan_comparison(load_recipe("digits"), out, small), finished_only=True)
    saved = trips.round_trip(trained, tmp_path)
    assert saved.method == "LoLDU r=96"
    # PEFT computes as the run did; the other two round differently, by 1.1e-5 where this was measured.
    assert saved.differences["by PEFT"] < 1e-5
    assert max(saved.differences.values()) < 5e-5
    assert set(saved.differences) == {"by PEFT", "reloaded", "merged"}
    assert len(set(saved.accuracies.values())) == 1
    real = trips.load_adapter

    def wrong(model, path):
        real(model, path)
        with torch.no_grad():
            next(lowrank_layers(model))[1].offset.add_(1.0)

    monkeypatch.setattr(trips, "load_adapter", wrong)
    with pytest.raises(RoundTripError, match="logits differ from the trained model's by by PEFT"):
        trips.round_trip(trained, tmp_path)


def test_a_folder_that_is_not_empty_is_refused_before_any_work(tmp_path, monkeypatch):
    (tmp_path / "mine.txt").write_text("mine")

    def never(*_, **__):
        raise AssertionError("the comparison was started")

    monkeypatch.setattr(comparing, "compare_methods", never)
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
