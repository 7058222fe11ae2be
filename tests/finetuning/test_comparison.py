"""Comparisons of methods on a tiny model: trials, seeds, tests that are read once, tables."""

import json
import math
import shutil
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from tiny_text_models import data_set, offline, save_model

from lowrank_ldu.errors import DivergenceError, OptionError, RunDirectoryError
from lowrank_ldu.finetuning import Choice, list_recipes, load_recipe, train
from lowrank_ldu.finetuning.comparison import compare as comparing
from lowrank_ldu.finetuning.comparison import (
    compare_methods,
    interval,
    methods_frame,
    plan_comparison,
    runs_frame,
    select_entries,
    sweep_panel,
    table_rows,
    worker,
    write_comparison,
)
from lowrank_ldu.finetuning.comparison.trials import setting_name, trial_settings
from lowrank_ldu.finetuning.run_directory import RunDirectory
from lowrank_ldu.finetuning.runs import Result
from lowrank_ldu.finetuning.training import Training

RECIPE = """
title = "Tiny"
kind = "text-classification"
model = "{base}/roberta"
data = "{base}"
method = "lora"
seeds = [3, 1]

target_modules = ["query", "value"]
max_length = 16
num_train_epochs = 2
per_device_train_batch_size = 16
learning_rate = 1e-2
head_epochs = 1

[tasks.mnli]
[tasks.sst2]

[paper]
lora = {{ numbers = 300000, mnli = 87.5 }}

[comparisons.ranks]
about = "ranks of LoRA"
trials = 2
seeds = 3
reference = "lora-4"
sweep = "r"
settings = {{ weight_decay = 0.01 }}
[comparisons.ranks.entries]
lora-1 = {{ method = "lora", title = "LoRA r = 1", r = 1, lora_alpha = 1, paper = {{ mnli = 51.0, numbers = 24 }} }}
lora-4 = {{ method = "lora", title = "LoRA r = 4", r = 4, lora_alpha = 4 }}
head = {{ method = "head", title = "LP" }}
wild = {{ method = "lora", title = "LoRA at no rate", r = 2, search = {{ learning_rate = [1e30, 2e30] }} }}
"""


RECORD = {"greater_is_better": True}

_offline = pytest.fixture(offline, scope="module", autouse=True)


@pytest.fixture(scope="module")
def recipe(tmp_path_factory):
    base = tmp_path_factory.mktemp("base")
    save_model(base / "roberta")
    splits = ("validation_matched", "validation_mismatched")
    data_set(("premise", "hypothesis"), label=lambda good: 2 * good, splits=splits).save_to_disk(base / "mnli")
    data_set().save_to_disk(base / "sst2")
    (base / "tiny.toml").write_text(RECIPE.format(base=base))
    return load_recipe(base / "tiny.toml")


def plan_of(recipe, out, names=(), **options):
    return plan_comparison(recipe, out, select_entries(recipe, names), tasks=["mnli"], **options)


@pytest.fixture(scope="module")
def compared(recipe, tmp_path_factory):
    plan = plan_of(recipe, tmp_path_factory.mktemp("compared"))
    told = []
    return plan, compare_methods(plan, tell=told.append), told


def test_every_method_gets_the_same_trials_and_the_best_one_all_seeds(compared):
    plan, trained, told = compared
    assert plan.seeds == (3, 1, 4)
    assert len(told) == 4 * 2 + 3 * 3
    assert told[-1].startswith("seeds, 9 of 9: mnli, head")
    for name in ("lora-1", "lora-4", "head"):
        trials, finals = (
            [each for each in trained if (each.entry.name, each.trial) == (name, kind)] for kind in (1, 0)
        )
        assert [each.seed for each in trials] == [3, 3]
        assert [each.seed for each in finals] == [3, 1, 4]
        best = max(trials, key=lambda each: each.result.score)
        assert {each.setting for each in finals} == {best.setting}
        assert [each.chosen for each in trials] == [each.setting == best.setting for each in trials]


def test_a_setting_is_chosen_by_the_mean_of_its_seeds(recipe, tmp_path, monkeypatch):
    """One is best with the first seed, another on average, and a third fails with the second seed."""
    plan = plan_of(recipe, tmp_path, ["lora-1"], trials=3, trial_seeds=2, seeds=3)
    settings = map(setting_name, plan.settings["mnli", "lora-1"])
    trained, by_setting = [], dict(zip(settings, [(0.9, 0.5), (0.8, 0.7), (0.95, None)], strict=True))

    def train_one(run, _, tests, *options):
        assert options == ("none", None)
        setting, seed = run.folder.parent.parent.name, plan.seeds.index(run.config.seed)
        trained.append((setting, run.config.seed, tests))
        score = by_setting[setting][min(seed, 1)]
        if score is None:
            return "the loss is no number"
        return Result(run.folder, "mnli", run.config.seed, "accuracy", {"validation": {"accuracy": score}}, 1, RECORD)

    monkeypatch.setattr(comparing, "train_one", train_one)
    found = compare_methods(plan)
    first, second, third = by_setting
    assert trained == [
        *((setting, seed, False) for setting in (first, second, third) for seed in (3, 1)),
        *((second, seed, True) for seed in (3, 1, 4)),
    ]
    assert {each.setting for each in found if each.chosen} == {second}
    assert [each.failure is None for each in found if each.setting == third] == [True, False]
    monkeypatch.setattr(comparing, "is_there", lambda run, tests: run.config.seed == 3)
    assert not any(each.chosen for each in compare_methods(plan, finished_only=True))  # a seed of each is missing


def test_a_single_setting_may_fail_with_a_seed(recipe, tmp_path, monkeypatch):
    plan = plan_of(recipe, tmp_path, ["lora-1"], trials=1, trial_seeds=2, seeds=3)

    def train_one(run, *_):
        if run.config.seed == 1:
            return "the loss is no number"
        return Result(run.folder, "mnli", run.config.seed, "accuracy", {"validation": {"accuracy": 0.5}}, 1, RECORD)

    monkeypatch.setattr(comparing, "train_one", train_one)
    finals = [each for each in compare_methods(plan) if not each.trial]
    assert [(each.seed, each.failure is None) for each in finals] == [(3, True), (1, False), (4, True)]


def test_trial_seeds_are_a_comparisons_own_or_ones_choice(recipe, tmp_path):
    changed = variant(recipe, trial_seeds=2, sweep="r")
    assert plan_of(changed, tmp_path, ["lora-1"]).trial_seeds == 2
    assert plan_of(changed, tmp_path, ["lora-1"], trial_seeds=3).trial_seeds == 3
    assert plan_of(recipe, tmp_path, ["lora-1"]).trial_seeds == 1


def test_tests_are_read_for_the_chosen_setting_alone(compared):
    plan, trained, _ = compared
    for each in trained:
        if each.failure is None:
            record = json.loads((each.result.folder / "metrics.json").read_bytes())
            assert ("validation_mismatched" in record["metrics"]) == each.chosen
            assert record["not_evaluated"] == ([] if each.chosen else ["validation_mismatched"])
    rows = runs_frame(trained)
    assert set(rows[rows["trial"]]["split"].dropna()) == {"validation"}
    assert set(rows[~rows["trial"]]["split"]) == {"validation", "validation_mismatched"}
    # The run that was a trial and has a seed is trained once.
    starts = json.loads((plan.out / "runs/lora-1").glob("*/mnli/seed-3/manifest.json").__next__().read_bytes())[
        "starts"
    ]
    assert len(starts) <= 2


def test_a_loss_that_is_no_number_fails_its_entry_and_nothing_else(compared):
    plan, trained, _ = compared
    failed = [each for each in trained if each.failure is not None]
    assert [(each.entry.name, each.trial) for each in failed] == [("wild", True)] * 2
    assert "the loss is" in failed[0].failure or "not finite" in failed[0].failure
    row = methods_frame(plan, trained).set_index("entry").loc["wild"]
    assert (row["seeds"], math.isnan(row["mean"])) == (0, True)


def test_the_same_call_again_trains_nothing(compared, monkeypatch):
    plan, trained, _ = compared
    monkeypatch.setattr(worker, "train", lambda run, **_: _finished(run))
    again = compare_methods(plan)
    assert [(each.setting, each.seed, each.failure) for each in again] == [
        (each.setting, each.seed, each.failure) for each in trained
    ]


def _finished(run):
    from lowrank_ldu.finetuning import runner

    assert RunDirectory(run.folder).finished() is not None
    return runner.train(run)


def test_what_is_finished_can_be_read_before_all_is(recipe, tmp_path):
    plan = plan_of(recipe, tmp_path, ["lora-1", "head"], trials=1, seeds=2)
    assert compare_methods(plan, finished_only=True) == []
    head = plan_of(recipe, tmp_path, ["head"], trials=1, seeds=2)
    compare_methods(head)
    found = compare_methods(plan, finished_only=True)
    assert [(each.entry.name, each.seed, each.trial) for each in found] == [
        ("head", 3, True), ("head", 3, False), ("head", 1, False),
    ]  # fmt: skip
    assert not (tmp_path / "runs" / "lora-1").exists()
    methods = write_comparison(plan, found).set_index("entry")
    assert "Its interval covers seeds and rows." in (tmp_path / "table.md").read_text()
    write_comparison(plan, [each for each in found if each.seed == 3])
    assert "One seed has no interval." in (tmp_path / "table.md").read_text()
    assert methods["seeds"].to_dict() == {"lora-1": 0, "head": 2}


@pytest.mark.longer
def test_jobs_change_no_number(recipe, compared, tmp_path):
    _, trained, _ = compared
    first = {(each.entry.name, each.setting): each.result for each in trained if each.trial and each.seed == 3}
    plan = plan_of(recipe, tmp_path, ["lora-4", "head"], trials=1, seeds=1)
    for each in compare_methods(plan, jobs=2):
        same = first[each.entry.name, each.setting].metrics["validation"]
        assert each.result.metrics["validation"] == pytest.approx(same, rel=1e-5)


def test_a_head_is_trained_alone_once_for_all_methods(compared):
    plan, _, _ = compared
    # Three seeds, and the three rates of the head: the two trials of it, and that of all other methods.
    assert 3 <= len(list((plan.out / "heads").iterdir())) <= 6


def test_tables_have_intervals_differences_sizes_and_the_papers_rows(compared):
    plan, trained, _ = compared
    rows = methods_frame(plan, trained).set_index("entry")
    reference, other = rows.loc["lora-4"], rows.loc["lora-1"]
    assert math.isnan(reference["difference"])
    assert other["difference"] == pytest.approx(other["mean"] - reference["mean"])
    assert other["difference_low"] <= other["difference"] <= other["difference_high"]
    assert other["low"] <= other["mean"] <= other["high"]
    # Query and value of two layers of width 16.
    assert (other["numbers"], reference["numbers"], rows.loc["head", "numbers"]) == (2 * 2 * 2 * 16, 4 * 128, 0)
    assert (other["paper"], other["paper_numbers"]) == (51.0, 24)
    assert math.isnan(reference["paper"])
    assert other["split"] == "validation"
    assert 0 < other["adapter_bytes"] < reference["adapter_bytes"]


def test_frames_tables_and_plots_are_written(compared):
    plan, trained, _ = compared
    methods = write_comparison(plan, trained)
    for name in ("methods", "runs"):
        frames = [
            pd.read_csv(plan.out / f"{name}.csv"),
            pd.read_json(plan.out / f"{name}.json", orient="records"),
            pd.read_parquet(plan.out / f"{name}.parquet"),
        ]
        assert all(list(frame.columns) == list(frames[0].columns) for frame in frames)
        assert {len(frame) for frame in frames} == {len(frames[0])}
    assert pd.read_parquet(plan.out / "methods.parquet")["mean"].equals(methods["mean"])
    text = (plan.out / "table.md").read_text()
    assert "| LoRA r = 1 | 128 |" in text
    assert "| LoRA at no rate | every run failed: the loss was no number |" in text
    assert "51 (24)" in text
    for name in ("scores-mnli", "sweep-r"):
        assert (plan.out / "plots" / f"{name}.png").read_bytes()[:4] == b"\x89PNG"
        assert (plan.out / "plots" / f"{name}.svg").read_text().count("<path") > 5
    panel = sweep_panel(methods, "r", {"lora-1": 1, "lora-4": 4})
    (bars,) = panel.axes.containers
    assert (bars.get_label(), bars.lines[0].get_xdata().tolist()) == ("mnli", [1, 4])
    paper = next(line for line in panel.axes.get_lines() if line.get_label() == "mnli, paper")
    assert paper.get_xydata()[0].tolist() == [1, 51.0]


def test_methods_of_no_comparison_are_compared_by_their_names():
    selection = select_entries(load_recipe("glue"), ["loldu", "lora"], reference="lora")
    assert [(each.name, each.title, each.paper["rte"]) for each in selection.entries] == [
        ("loldu", "LoLDU", 81.3),
        ("lora", "LoRA", 78.4),
    ]
    assert (selection.reference, selection.trials, selection.seeds) == ("lora", None, None)


def test_a_plain_method_has_what_counts_for_the_first_comparison(recipe):
    selection = select_entries(recipe, ["bitfit"])
    assert (selection.name, selection.trials, selection.seeds) == ("ranks", 2, 3)
    assert selection.entries[0].settings == {"weight_decay": 0.01}


def test_learning_rates_go_out_from_the_recipes(recipe):
    entry, head = select_entries(recipe, ["lora-1", "head"]).entries
    rates = [each["learning_rate"] for each in trial_settings(recipe, "mnli", entry, Choice(), 5)]
    assert rates == [0.01, 0.0032, 0.032, 0.001, 0.1]
    # What a user sets is where it starts.
    chosen = Choice(settings={"learning_rate": 2e-4})
    assert trial_settings(recipe, "mnli", entry, chosen, 2) == [{"learning_rate": 2e-4}, {"learning_rate": 6.3e-5}]
    chosen = Choice(settings={"head_learning_rate": 0.1})
    assert trial_settings(recipe, "mnli", head, chosen, 2) == [
        {"head_learning_rate": 0.1},
        {"head_learning_rate": 0.032},
    ]


def test_a_search_of_ones_own_is_a_grid(recipe):
    selection = select_entries(recipe, ["lora-1"]).searching({"r": [1, 2], "learning_rate": [1e-3, 1e-2]})
    (entry,) = selection.entries
    tried = trial_settings(recipe, "mnli", entry, Choice(), 4)
    assert sorted((each["r"], each["learning_rate"]) for each in tried) == [
        (1, 1e-3), (1, 1e-2), (2, 1e-3), (2, 1e-2),
    ]  # fmt: skip
    assert trial_settings(recipe, "mnli", entry, Choice(), 2) == tried[:2]
    with pytest.raises(OptionError, match="trials is 5, and the search of lora-1 has 4 points; accepted: 1 to 4"):
        trial_settings(recipe, "mnli", entry, Choice(), 5)
    with pytest.raises(OptionError, match=r"search of r is 3; accepted: a list of values"):
        selection.searching({"r": 3})


def told_of_trials(plan):
    from lowrank_ldu.finetuning.comparison.report import _trials_told

    return _trials_told(plan)


def test_every_value_of_a_search_is_tried_and_the_table_tells_how_many(recipe, tmp_path):
    rates = {"learning_rate": [1e-3, 1e-2, 1e-1]}
    whole = select_entries(recipe, ["lora-1", "head"]).searching(rates)
    # The comparison's two trials are of another search.
    plan = plan_comparison(recipe, tmp_path, whole, tasks=["mnli"])
    assert sorted(each["learning_rate"] for each in plan.settings["mnli", "lora-1"]) == rates["learning_rate"]
    assert told_of_trials(plan).startswith(
        "Each method was tried with 3 settings (of a search, all settings) and one s"
    )
    two = plan_comparison(recipe, tmp_path, whole, tasks=["mnli"], trials=2)
    assert "with 2 settings (of a search, 2 of 3 settings, drawn with a fixed seed) and" in told_of_trials(two)
    one = plan_comparison(recipe, tmp_path, whole, tasks=["mnli"], trials=1)
    assert told_of_trials(one) == "Settings are the recipe's; of a search, 1 of 3 settings, drawn with a fixed seed."
    single = plan_comparison(recipe, tmp_path, whole.searching({"learning_rate": [0.1]}), tasks=["mnli"])
    assert (single.trials, told_of_trials(single)) == (1, "Settings are the recipe's; of a search, all settings.")
    chosen = Choice(settings={"num_train_epochs": 1})
    plain = plan_of(recipe, tmp_path, ["lora-1"], trials=1, choice=chosen)
    assert told_of_trials(plain) == "Settings are the recipe's. Set for all: num_train_epochs = 1."


def test_a_comparison_without_a_number_of_trials_has_those_of_its_searches(recipe, tmp_path):
    entries = {"a": {"method": "lora", "search": {"r": [1, 2, 3]}}, "b": {"method": "lora"}}
    own = variant(recipe, entries, sweep=None, trials=None)
    plan = plan_of(own, tmp_path)
    assert [len(plan.settings["mnli", name]) for name in ("a", "b")] == [3, 3]
    entries["b"]["search"] = {"r": [1, 2]}
    with pytest.raises(OptionError, match=r"trials is not given, and .* \(2 of b, 3 of a\); accepted: 1 to 2"):
        plan_of(variant(recipe, entries, sweep=None, trials=None), tmp_path)


@pytest.mark.parametrize(
    ("names", "options", "message"),
    [
        (["lorra"], {}, "method is 'lorra'; accepted: lora"),
        ([], {"comparison": "rank"}, "comparison is 'rank'; accepted: ranks"),
        (["lora-1"], {"reference": "lora-4"}, "reference is 'lora-4'; accepted: lora-1"),
    ],
)
def test_unknown_names_are_refused_and_near_ones_named(recipe, names, options, message):
    with pytest.raises(OptionError, match=message):
        select_entries(recipe, names, **options)


def test_each_accepted_method_is_named_once():
    # Entries of this recipe have names of methods.
    with pytest.raises(OptionError, match="method is 'zzzzzz'; accepted: ") as caught:
        select_entries(load_recipe("digits"), ["zzzzzz"])
    names = str(caught.value).partition("accepted: ")[2].split(", ")
    assert len(set(names)) == len(names) > 1


def test_wrong_options_are_found_before_anything_is_trained(recipe, tmp_path):
    selection = select_entries(recipe, ["lora-1"])
    for options, message in (
        ({"trials": 0}, "trials is 0; accepted: an integer from 1 on"),
        ({"seeds": 0}, "seeds is 0"),
        ({"trial_seeds": 4}, "trial_seeds is 4; accepted: 1 to 3, the number of seeds"),
        ({"trial_seeds": 0}, "trial_seeds is 0; accepted: an integer from 1 on"),
        ({"choice": Choice(method="lora")}, "method is 'lora'; accepted: none, the entries have methods"),
        ({"choice": Choice(settings={"n_frequency": 3})}, "n_frequency"),
        ({"tasks": ["mnlii"]}, "task is 'mnlii'; accepted: mnli"),
    ):
        with pytest.raises(OptionError, match=message):
            plan_comparison(recipe, tmp_path, selection, **options)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("name", "comparison"), [(name, each) for name in list_recipes() for each in load_recipe(name).comparisons]
)
def test_comparisons_of_shipped_recipes_can_be_planned(name, comparison, tmp_path):
    recipe = load_recipe(name)
    selection = select_entries(recipe, comparison=comparison)
    plan = plan_comparison(recipe, tmp_path, selection, tasks=recipe.tasks[:1])
    assert recipe.table["comparisons"][comparison].get("reference", selection.reference) == selection.reference
    assert len({entry.title for entry in selection.entries}) == len(selection.entries)
    # What differs in nothing would be one row twice.
    settings = [(entry.method, str(sorted(entry.settings.items()))) for entry in selection.entries]
    assert len(set(settings)) == len(settings)
    if selection.sweep is not None:
        assert all(entry.settings[selection.sweep] > 0 for entry in selection.entries)
    assert len(plan.settings) == len(selection.entries)


def variant(recipe, entries=None, **changes):
    """The recipe with another comparison."""
    table = {**recipe.table["comparisons"]["ranks"], **changes}
    table = {name: value for name, value in table.items() if value is not None}
    if entries is not None:
        table["entries"] = entries
        table["reference"] = next(iter(entries))
    return replace(recipe, table={**recipe.table, "comparisons": {"ranks": table}})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"entries": {"../a": {"method": "lora"}}}, "entry is named '../a'; accepted: up to 100 letters"),
        ({"entries": {"a": 3}}, "entry a is 3; accepted: a table"),
        ({"entries": {"a": {"method": ["lora"]}}}, r"method is \['lora'\]; accepted"),
        ({"entries": {"a": {"method": "lora", "r": 1, "title": ["LoRA"]}}}, r"title of a is \['LoRA'\]"),
        ({"entries": {"a": {"method": "lora", "r": 1, "search": 3}}}, "search is 3; accepted: a table"),
        ({"entries": {"a": {"method": "lora", "r": 1, "search": {"r": [1, 1]}}}}, "accepted: different values"),
        ({"entries": {"a": {"method": "lora", "r": 1, "search": {"max_eval_samples": [5]}}}}, "on different rows"),
        (
            {"entries": {"a": {"method": "lora", "r": 1, "paper": {"mnli": "90"}}}},
            "paper of a has mnli '90'; accepted: a",
        ),
        ({"entries": {"a": {"method": "lora", "r": 1, "paper": {"rte": 90}}}}, "paper of a has rte; accepted: numbers"),
        ({"sweep": "init"}, "sweep is 'init'; accepted: a key of which entries have"),
        ({"sweep": "title"}, "sweep is title, of which entry lora-1 has 'LoRA r = 1'; accepted: positive numbers"),
        ({"sweep": ["r"]}, r"sweep is \['r'\]"),
        ({"reference": "lora-5"}, "reference is 'lora-5'; accepted: lora-1, lora-4"),
        ({"trials": "3"}, "trials is '3'; accepted: an integer from 1 on"),
        ({"trial_seeds": 0}, "trial_seeds is 0; accepted: an integer from 1 on"),
        ({"settings": 3}, "settings is 3; accepted: a table"),
    ],
)
def test_comparisons_that_are_none_are_refused_in_a_line(recipe, changes, message):
    changes = {"sweep": "r", **changes}
    if "entries" in changes:
        del changes["sweep"]
        table = {key: value for key, value in recipe.table["comparisons"]["ranks"].items() if key != "sweep"}
        recipe = replace(recipe, table={**recipe.table, "comparisons": {"ranks": table}})
    with pytest.raises(OptionError, match=message):
        select_entries(variant(recipe, **changes))


def test_nothing_makes_an_entry_another_one_than_its_title_says(recipe, tmp_path):
    selection = select_entries(recipe, ["lora-1", "lora-4"])
    with pytest.raises(
        OptionError, match="r is set for all entries, and lora-1 has its own; accepted: to leave it out"
    ):
        plan_comparison(recipe, tmp_path, selection, Choice(settings={"r": 2}), tasks=["mnli"])
    with pytest.raises(OptionError, match="search has r, and lora-1 has its own; accepted: another key"):
        plan_comparison(recipe, tmp_path, selection.searching({"r": [1, 2]}), tasks=["mnli"])
    rates = {name: {"method": "lora", "r": 2, "learning_rate": float(name)} for name in ("1e-3", "1e-2")}
    swept = select_entries(variant(recipe, entries=rates, sweep="learning_rate"))
    with pytest.raises(OptionError, match="trials is 2, and the comparison sweeps learning_rate; accepted: 1, or"):
        plan_comparison(recipe, tmp_path, swept, tasks=["mnli"])
    plan = plan_comparison(recipe, tmp_path, swept, tasks=["mnli"], trials=1)
    assert plan.settings == {("mnli", name): [{"learning_rate": float(name)}] for name in rates}
    # Entries of one title are told apart.
    assert [entry.title for entry in swept.entries] == ["LoRA (1e-3)", "LoRA (1e-2)"]


def without(compared, *names):
    """The comparison, of which some entries cannot be had."""
    plan, trained, _ = compared
    entries = tuple(
        replace(entry, unavailable="PEFT lacks it") if entry.name in names else entry
        for entry in plan.selection.entries
    )
    kept = [each for each in trained if each.entry.name not in names]
    return replace(plan, selection=replace(plan.selection, entries=entries)), kept


def test_a_method_that_cannot_be_had_has_a_row_that_says_so_and_the_others_their_scores(compared):
    plan, trained = without(compared, "head")
    rows = {cells[0]: cells for cells in table_rows(methods_frame(plan, trained), "mnli")}
    assert rows["LP"][1] == "not available: PEFT lacks it"
    assert rows["LoRA r = 4"][1] == "512"


def test_incomplete_seeds_are_seen(compared):
    plan, trained, _ = compared
    some = [each for each in trained if each.trial or each.seed != 4 or each.entry.name != "lora-1"]
    rows = {cells[0]: cells for cells in table_rows(methods_frame(plan, some), "mnli")}
    assert (rows["LoRA r = 1"][5], rows["LoRA r = 4"][5]) == ("2 of 3", "3 of 3")


def test_predictions_of_other_rows_are_not_paired(compared, tmp_path):
    plan, trained, _ = compared
    moved = []
    for each in trained:
        if each.entry.name == "lora-1" and not each.trial:
            folder = tmp_path / str(each.seed)
            shutil.copytree(each.result.folder, folder)
            directory = RunDirectory(folder)
            predictions, labels = directory.predictions("validation")
            directory.keep_predictions("validation", predictions[::-1], labels[::-1])
            each = replace(each, result=replace(each.result, folder=folder))  # noqa: PLW2901
        moved.append(each)
    before, after = (methods_frame(plan, runs).set_index("entry") for runs in (trained, moved))
    # Its own interval is of the same rows; that of the difference is of the seeds alone.
    assert after.loc["lora-1", "low"] == pytest.approx(before.loc["lora-1", "low"], abs=0.02)
    scores = {
        name: np.array([each.result.score for each in moved if each.entry.name == name and not each.trial])
        for name in ("lora-1", "lora-4")
    }
    of_seeds = interval(scores["lora-1"] - scores["lora-4"])
    assert after.loc["lora-1", "difference_low"] == pytest.approx(of_seeds.low)
    assert before.loc["lora-1", "difference_low"] != after.loc["lora-1", "difference_low"]


def test_a_failure_in_the_tests_chooses_nothing(recipe, tmp_path, monkeypatch):
    plan = plan_of(recipe, tmp_path, ["lora-1"], trials=2, seeds=1)
    evaluated = Training._evaluated

    def fail(self, split, rows):
        if split == "validation_mismatched":
            raise DivergenceError("the model's predictions are not finite")
        return evaluated(self, split, rows)

    monkeypatch.setattr(Training, "_evaluated", fail)
    first, again = compare_methods(plan), compare_methods(plan)
    assert [(each.setting, each.trial, each.failure) for each in first] == [
        (each.setting, each.trial, each.failure) for each in again
    ]
    assert [each.failure is None for each in first] == [True, True, False]
    assert {each.setting for each in first if each.chosen} == {first[-1].setting}


def test_a_head_depends_on_all_that_it_was_trained_with(recipe, tmp_path):
    def train_with(rows, steps, out):
        settings = {"per_device_train_batch_size": rows, "gradient_accumulation_steps": steps, "num_train_epochs": 1}
        plan = plan_of(recipe, tmp_path / out, ["lora-1"], trials=1, seeds=1, choice=Choice(settings=settings))
        run = plan.run("mnli", plan.selection.entries[0], {"learning_rate": 1e-2}, 3)
        return train(run, heads=tmp_path / "heads").metrics["validation"]["loss"]

    first, second = train_with(16, 1, "a"), train_with(8, 2, "b")
    assert len(list((tmp_path / "heads").iterdir())) == 2
    assert first != second
    # A broken one is trained anew.
    for file in (tmp_path / "heads").iterdir():
        file.write_bytes(b"half")
    assert train_with(16, 1, "c") == first


@pytest.mark.parametrize("content", ["{}", "[]", "3", "{"])
def test_a_broken_result_is_named(compared, tmp_path, content):
    _, trained, _ = compared
    folder = tmp_path / "run"
    shutil.copytree(next(each.result.folder for each in trained if each.result), folder)
    (folder / "metrics.json").write_text(content)
    with pytest.raises(RunDirectoryError, match=r"metrics.json: "):
        RunDirectory(folder).finished()
    (folder / "predictions" / "validation.safetensors").write_bytes(b"half")
    with pytest.raises(RunDirectoryError, match=r"validation.safetensors: cannot be read"):
        RunDirectory(folder).predictions("validation")


def test_titles_are_escaped_in_markdown(compared):
    plan, trained, _ = compared
    entries = [replace(entry, title="a | b\nc") if entry.name == "head" else entry for entry in plan.selection.entries]
    renamed = replace(plan, selection=replace(plan.selection, entries=tuple(entries)))
    runs = [replace(each, entry=next(entry for entry in entries if entry.name == each.entry.name)) for each in trained]
    write_comparison(renamed, runs)
    line = next(line for line in (plan.out / "table.md").read_text().splitlines() if line.startswith("| a"))
    assert line.startswith("| a \\| b c | 0 |")
