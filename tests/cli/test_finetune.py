"""The command finetune: lists, plans, runs, and one line for what cannot be."""

import json

import pytest
from tiny_text_models import data_set, offline, save_model
from typer.testing import CliRunner

from lowrank_ldu.cli.app import app
from lowrank_ldu.cli.options import REPORTS
from lowrank_ldu.finetuning import list_recipes, load_recipe, runner
from lowrank_ldu.finetuning.methods import METHODS

_offline = pytest.fixture(offline, scope="module", autouse=True)


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    folder = tmp_path_factory.mktemp("base")
    save_model(folder / "model")
    data_set(("sentence1", "sentence2")).save_to_disk(folder / "data" / "mrpc")
    data_set(("sentence1", "sentence2")).save_to_disk(folder / "data" / "rte")
    return folder


def finetune(*words):
    return CliRunner().invoke(app, ["finetune", *map(str, words)])


def words(base, out, *more):
    return (
        "glue", "--model", base / "model", "--data", base / "data", "--task", "rte", "--task", "mrpc", "--out", out,
        "--method", "lora", "--set", "r=2", "--set", "max_length=16", "--set", "num_train_epochs=1", *more,
    )  # fmt: skip


def test_list_names_recipes_tasks_variants_and_methods():
    result = finetune("--list")
    assert result.exit_code == 0
    for name in list_recipes():
        recipe = load_recipe(name)
        assert f"{name}: {recipe.title}\n" in result.output
        assert ", ".join(recipe.tasks) in result.output
        assert all(f"variant {variant}: " in result.output for variant in recipe.variants)
        assert all(f"comparison {each}: " in result.output for each in recipe.comparisons)
    assert all(f"  {name}: {method.title}" in result.output for name, method in METHODS.items())


def test_show_prints_the_file():
    result = finetune("glue", "--show")
    assert (result.exit_code, result.output) == (0, load_recipe("glue").text)


def test_a_dry_run_lists_what_would_be_run_and_leaves_nothing(base, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = finetune(*words(base, "out", "--dry-run", "--seed", "3", "--seed", "4"))
    assert result.exit_code == 0
    assert [line for line in result.output.splitlines() if "seed" in line] == [
        f"  seed {seed}, new: out/{task}/seed-{seed}" for task in ("rte", "mrpc") for seed in (3, 4)
    ]
    assert "  method_options.r = 2\n" in result.output
    assert not list(tmp_path.iterdir())
    # Layers are looked at where the model is at hand.
    targets = finetune(*words(base, "out", "--dry-run", "--set", 'target_modules=["nope"]'))
    assert (targets.exit_code, targets.stdout) == (2, "")
    assert targets.stderr.startswith("error: target 'nope' matches no module; layers of this model that it could match")
    result = finetune("glue", "--dry-run", "--task", "cola", "--model", "nobody/nothing")
    assert "not checked: targets and ranks on nobody/nothing, whose layers" in result.stderr
    assert "seed 4, new: lowrank-ldu-runs/glue-table7-loldu/cola/seed-4" in result.output


def test_tasks_and_seeds_are_run_and_summed_up(base, tmp_path, monkeypatch):
    monkeypatch.setenv("COLUMNS", "120")
    result = finetune(*words(base, tmp_path / "out", "--seed", "1", "--seed", "2"))
    assert result.exit_code == 0, result.output
    assert "rte, seed 1, new: " in result.stderr
    assert "step 2 of 2: loss" in result.stderr
    assert "validation accuracy" in result.stdout
    assert "validation f1" in result.stdout
    summary = json.loads((tmp_path / "out" / "summary.json").read_bytes())
    scores = [each["metrics"]["validation"]["accuracy"] for each in summary["runs"] if each["task"] == "rte"]
    assert summary["medians"]["rte"]["validation"]["accuracy"] == sum(scores) / 2
    # Once more it is read.
    monkeypatch.setattr(runner, "Training", None)
    again = finetune(*words(base, tmp_path / "out", "--seed", "1", "--seed", "2"))
    assert again.stdout == result.stdout
    planned = finetune(*words(base, tmp_path / "out", "--seed", "1", "--seed", "5", "--dry-run"))
    assert f"seed 1, finished: {tmp_path}" in planned.output
    assert f"seed 5, new: {tmp_path}" in planned.output


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ((), "no recipe is given; accepted: a name of lowrank-ldu finetune --list, or a .toml file"),
        (("gleu",), "recipe is 'gleu'; accepted: glue, or a .toml file"),
        (("glue", "--task", "mrcp"), "task is 'mrcp'; accepted: mrpc"),
        (("glue", "--method", "lorra"), "method is 'lorra'; accepted: lora"),
        (("glue", "--variant", "table8"), "variant is 'table8'; accepted: table7"),
        (("glue", "--set", "learning_rat=1"), "learning_rat is no option of recipe glue; accepted: learning_rate"),
        (("glue", "--set", "learning_rate"), "setting is 'learning_rate'; accepted: KEY=VALUE"),
        (("glue", "--report-to", "paper"), "--report-to is 'paper'; accepted: none, tensorboard, wandb, trackio"),
        (("glue", "--seed", "-1"), "seed is -1; accepted: 0 to 4294967295"),
        (("glue", "--model", "nobody/nothing", "--data", "nobody/nothing"), "data is 'nobody/nothing': neither"),
    ],
)
def test_what_cannot_be_is_one_line(given, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = finetune(*given)
    assert result.exit_code == 2
    assert message in result.stderr
    assert len([line for line in result.stderr.splitlines() if line.startswith("error: ")]) == 1
    assert "Traceback" not in result.output


def test_words_of_reports_are_those_of_the_library():
    assert REPORTS == runner.REPORTS
