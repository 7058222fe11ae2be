"""The command compare-methods: plans, tables, and one line for what cannot be."""

import pandas as pd
import pytest
from tiny_text_models import data_set, offline, save_model
from typer.testing import CliRunner

from lowrank_ldu.cli.app import app
from lowrank_ldu.finetuning import METHODS

_offline = pytest.fixture(offline, scope="module", autouse=True)


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    folder = tmp_path_factory.mktemp("base")
    save_model(folder / "model")
    data_set(("sentence1", "sentence2")).save_to_disk(folder / "data" / "rte")
    return folder


def compare(*words):
    return CliRunner().invoke(app, ["compare-methods", *map(str, words)])


def words(base, out, *more):
    return (
        "glue", "--model", base / "model", "--data", base / "data", "--task", "rte", "--out", out, "--seeds", 2,
        "--set", "max_length=16", "--set", "num_train_epochs=1", "--methods", "lora,head", "--methods", "bitfit", *more,
    )  # fmt: skip


def test_a_dry_run_lists_settings_and_leaves_nothing(base, tmp_path):
    result = compare(*words(base, tmp_path / "out", "--trials", 3, "--dry-run"))
    assert result.exit_code == 0, result.output
    assert "lora: LoRA\n  rte: learning_rate=0.0004; learning_rate=0.00013; learning_rate=0.0013\n" in result.output
    assert result.output.endswith("12 runs: 3 trials and 2 seeds of 3 pairs of task and entry\n")
    assert not (tmp_path / "out").exists()


def test_methods_are_compared_and_the_table_fits_a_terminal(base, tmp_path, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    early = compare(*words(base, tmp_path / "out", "--finished"))
    assert early.exit_code == 0, early.output
    assert "Nothing is finished." in early.stdout
    result = compare(*words(base, tmp_path / "out", "--reference", "head"))
    assert result.exit_code == 0, result.output
    assert "trials, 3 of 3: rte, bitfit, learning_rate=0.0004, seed 0: validation accuracy" in result.stderr
    assert "seeds, 6 of 6: rte, bitfit" in result.stderr
    assert f"Difference: from {METHODS['head'].title}, with the same seeds and rows." in result.stdout
    rows = pd.read_csv(tmp_path / "out" / "methods.csv").set_index("entry")
    for name in ("lora", "head", "bitfit"):
        (line,) = (each for each in result.stdout.splitlines() if each.startswith(f"│ {name}"))
        assert f"{100 * rows.loc[name, 'mean']:.1f} │" in line
        assert len(line) <= 80
    assert "paper" in (tmp_path / "out" / "table.md").read_text()
    again = compare(*words(base, tmp_path / "out", "--reference", "head", "--finished"))
    assert again.stdout == result.stdout


FIGURES = """
title = "Tiny"
kind = "text-classification"
model = "{base}/model"
data = "{base}/data"
method = "lora"
seeds = [0, 1]
target_modules = ["query"]
max_length = 16
num_train_epochs = 1
[tasks.rte]
[comparisons.few]
metrics = {{ loss = "validation/loss", mmlu = "mmlu/acc" }}
[comparisons.few.entries]
lora-2 = {{ method = "lora", title = "LoRA r = 2", r = 2, paper = {{ rte = {{ score = 70.1, loss = 0.31 }} }} }}
head = {{ method = "head" }}
"""


def test_further_figures_have_a_table_that_fits_a_terminal(base, tmp_path, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    (tmp_path / "tiny.toml").write_text(FIGURES.format(base=base))
    result = compare(tmp_path / "tiny.toml", "--out", tmp_path / "out")
    assert result.exit_code == 0, result.output
    figures = pd.read_csv(tmp_path / "out" / "figures.csv").set_index(["entry", "figure"])
    losses = figures.xs("loss", level="figure")["mean"]
    shown = result.stdout[result.stdout.index("rte: loss") : result.stdout.index("rte: mmlu")].splitlines()
    (lora,), (head,) = ([line for line in shown if name in line] for name in ("lora-2", "head"))
    assert f" {losses['lora-2']:.3f} " in lora
    assert lora.endswith(" 0.31 │")
    assert f" {losses['head'] - losses['lora-2']:+.3f} " in head
    assert max(map(len, shown)) <= 80
    assert "…" not in result.stdout
    said = " ".join(result.stdout.split())
    assert "mmlu is missing for LoRA r = 2, " in said
    assert "the run has no mmlu; it has validation." in said


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--methods", "lorra"], "method is 'lorra'; accepted: lora"),
        (["--set", "learning_rat=1"], "learning_rat is no option of recipe glue; accepted: learning_rate"),
        (["--methods", "loldu"], "entry loldu: method 'loldu': layers 'roberta.encoder.layer.0."),
        (["--methods", "loldu", "--dry-run"], "rank is 768; accepted: an integer from 1 to 16"),
        (["--search", "r=2"], "search of r is 2; accepted: a list of values"),
        (["--search", "r=[1,2]", "--trials", "3"], "trials is 3, and the search of lora has 2 points"),
        (["--comparison", "sizes"], "comparison is 'sizes'; accepted: none, recipe glue has none"),
        (["--report-to", "paper"], "--report-to is 'paper'; accepted: none, tensorboard"),
    ],
)
def test_what_cannot_be_is_said_in_a_line(base, tmp_path, more, message):
    result = compare(*words(base, tmp_path / "out", *more))
    assert result.exit_code == 2
    assert message in result.stderr
    assert "Traceback" not in result.output
    assert not (tmp_path / "out").exists()


def test_a_recipe_without_entries_names_methods():
    result = compare("glue")
    assert result.exit_code == 2
    assert "recipe glue has no entries to compare; accepted: --methods with some of full, head" in result.stderr
