"""Further figures of a comparison: what runs have, intervals over seeds, what the paper prints, and what is missing."""

import json
import math
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import scipy.stats

from lowrank_ldu.errors import OptionError
from lowrank_ldu.finetuning import (
    Choice,
    Result,
    Trained,
    figures_frame,
    load_recipe,
    methods_frame,
    plan_comparison,
    select_entries,
    write_comparison,
)
from lowrank_ldu.finetuning.comparison import figure_rows, figure_sentences, find_figure

RECIPE = """
title = "Instructions"
kind = "causal-lm"
model = "nowhere/llama"
data = "nowhere/rows"
method = "lora"
seeds = [0, 1, 2, 3]
target_modules = ["q_proj"]
[tasks.alpaca]

[paper]
head = { alpaca = { dino = 0.5 } }

[comparisons.table]
reference = "lora"
metrics = { mmlu = "mmlu/acc", dino = "samples/dino", bbh = "bbh/exact_match", drop = "drop" }
[comparisons.table.entries.lora]
method = "lora"
title = "LoRA"
[comparisons.table.entries.loldu]
method = "loldu"
title = "LoLDU | r = 4"
r = 4
paper = { numbers = 16, alpaca = { score = 1.5, mmlu = 46.2, dino = 0.72 } }
"""
ENTRIES = ("lora", "loldu")


@pytest.fixture
def plan(tmp_path):
    (tmp_path / "some.toml").write_text(RECIPE)
    recipe = load_recipe(tmp_path / "some.toml")
    return plan_comparison(recipe, tmp_path / "out", select_entries(recipe), Choice())


def metrics_of(seed, entry):
    """Of a run: other ones for each seed and entry."""
    drawn = np.random.default_rng([seed, ENTRIES.index(entry)])
    return {
        "validation": {"loss": 2 + drawn.normal(0, 0.1)},
        "mmlu": {"acc": 0.45 + drawn.normal(0, 0.01), "acc_stderr": 0.004},
        "samples": {"dino": drawn.normal(0.7, 0.02)},
        "bbh": {"exact_match,get-answer": drawn.normal(0.33, 0.01), "exact_match_stderr,get-answer": 0.005},
        "drop": {"em": drawn.normal(0.31, 0.01), "em_stderr": 0.003},
    }


def trained(plan, change=lambda seed, entry, metrics: metrics, seeds=4):
    """Runs with metrics that are made up."""
    sizes = dict.fromkeys(("numbers", "numbers_trained_whole", "adapter_bytes", "shared_bytes"), 7)
    record = {"greater_is_better": False, "reported": "validation", "best_step": 1, "steps": 1, **sizes}
    record |= {"peak_memory_bytes": 9, "seconds": 1.0}
    return [
        Trained(
            entry,
            "learning_rate=0.1",
            "alpaca",
            seed,
            trial=False,
            chosen=True,
            result=Result(
                plan.out, "alpaca", seed, "loss", change(seed, entry.name, metrics_of(seed, entry.name)), 7, record
            ),
        )
        for entry in plan.selection.entries
        for seed in plan.seeds[:seeds]
    ]


def frame_of(plan, runs):
    return figures_frame(plan, runs, methods_frame(plan, runs))


def test_intervals_are_students_over_seeds_and_differences_are_paired(plan):
    figures = frame_of(plan, trained(plan)).set_index(["figure", "entry"])
    for figure, split, metric in (
        ("mmlu", "mmlu", "acc"), ("dino", "samples", "dino"), ("bbh", "bbh", "exact_match,get-answer"),
        ("drop", "drop", "em"),
    ):  # fmt: skip
        own, other = (np.array([metrics_of(seed, name)[split][metric] for seed in range(4)]) for name in ENTRIES)
        row = figures.loc[figure, "loldu"]
        for values, names in ((other, ("low", "high")), (other - own, ("difference_low", "difference_high"))):
            expected = scipy.stats.t.interval(0.95, 3, loc=values.mean(), scale=scipy.stats.sem(values))
            assert [row[name] for name in names] == pytest.approx(expected)
        assert (row["mean"], row["difference"]) == pytest.approx((other.mean(), (other - own).mean()))
        assert (row["split"], row["metric"], row["seeds"], row["judged"]) == (split, metric, 4, False)
        assert math.isnan(figures.loc[figure, "lora"]["difference"])


def test_the_judged_score_is_among_them_as_in_the_methods_frame(plan):
    runs = trained(plan)
    methods = methods_frame(plan, runs).set_index("entry")
    figures = figures_frame(plan, runs, methods.reset_index())
    scores = figures[figures["judged"]].set_index("entry")
    assert set(scores["figure"]) == {"score"}
    for name in ("mean", "low", "high", "difference", "difference_low", "split", "metric", "seeds"):
        assert scores[name].equals(methods[name].astype(scores[name].dtype)), name
    # A row for each entry and figure: what pandas pivots.
    wide = figures.pivot_table(index="entry", columns="figure", values="mean")
    assert wide.shape == (2, 5)
    assert wide.notna().all(axis=None)


def test_the_papers_figures_stand_beside_ours(plan):
    selection = plan.selection
    assert [entry.paper for entry in selection.entries] == [{}, {"numbers": 16, "alpaca": 1.5}]
    figures = frame_of(plan, trained(plan)).set_index(["entry", "figure"])["paper"]
    assert figures.loc["loldu"].dropna().to_dict() == {"score": 1.5, "mmlu": 46.2, "dino": 0.72}
    assert figures.loc["lora"].isna().all()
    # What the recipe says of a method may be named as in any comparison.
    (head,) = select_entries(plan.recipe, ["head"]).entries
    assert head.paper_figures == {"alpaca": {"dino": 0.5}}


def test_what_a_run_lacks_is_a_dash_with_its_reason_and_hides_nothing(plan):
    def change(seed, entry, metrics):
        if entry == "loldu":
            del metrics["bbh"]
        if seed == 2:
            metrics["mmlu"]["acc"] = math.nan
        metrics["drop"]["f1"] = 0.4
        return metrics

    runs = trained(plan, change)
    figures = frame_of(plan, runs).set_index(["figure", "entry"])
    values = [metrics_of(seed, "loldu")["mmlu"]["acc"] for seed in (0, 1, 3)]
    assert figures.loc["mmlu", "loldu"]["mean"] == pytest.approx(np.mean(values))
    assert figures.loc["mmlu", "loldu"]["seeds"] == 3
    assert figures.loc["mmlu", "loldu"]["missing"] == "seed 2: acc is nan"
    assert figures.loc["bbh", "lora"]["seeds"] == 4
    told = figure_sentences(plan, figures.reset_index(), "alpaca")
    assert "mmlu is missing for LoRA, LoLDU | r = 4: seed 2: acc is nan." in told
    assert "bbh is missing for LoLDU | r = 4: the run has no bbh; it has validation, mmlu, samples, drop." in told
    assert "drop is missing for LoRA, LoLDU | r = 4: drop has em, f1, and one of them has to be named." in told
    rows = {cells[:2]: cells for cells in figure_rows(figures.reset_index(), "alpaca")}
    assert rows["bbh", "LoLDU | r = 4"][2:] == ("-", "-", "-", "0 of 4", "-", "-", "-")
    assert rows["dino", "LoLDU | r = 4"][-1] == "0.72"
    write_comparison(plan, runs)
    assert "| drop | LoRA | - | - | - | 0 of 4 | - | - | - |" in (plan.out / "table.md").read_text()


def test_tables_and_frames_are_written(plan):
    write_comparison(plan, trained(plan))
    text = (plan.out / "table.md").read_text()
    mmlu, dino = (
        np.mean([metrics_of(seed, "loldu")[split][metric] for seed in range(4)])
        for split, metric in (("mmlu", "acc"), ("samples", "dino"))
    )
    # Shares as papers print them, in per cent; cosines as they are.
    assert f"| mmlu | LoLDU \\| r = 4 | {100 * mmlu:.1f} |" in text
    assert f"| dino | LoLDU \\| r = 4 | {dino:.3f} |" in text
    assert "- Their intervals cover seeds alone: the rows that they are of are not kept." in text
    frames = [
        pd.read_csv(plan.out / "figures.csv"),
        pd.read_json(plan.out / "figures.json", orient="records"),
        pd.read_parquet(plan.out / "figures.parquet"),
    ]
    assert all(list(frame.columns) == list(frames[0].columns) and len(frame) == 10 for frame in frames)
    assert frames[2]["mean"].tolist() == pytest.approx(frames[0]["mean"].tolist())


def test_one_seed_and_none_have_no_interval(plan):
    runs = trained(plan, seeds=1)
    figures = frame_of(plan, runs)
    assert figures["mean"].notna().all()
    assert figures[["low", "high", "difference_low"]].isna().all(axis=None)
    assert "One seed has no interval." in figure_sentences(plan, figures, "alpaca")
    write_comparison(plan, [])
    assert "- No run has further figures yet." in (plan.out / "table.md").read_text()
    assert len(pd.read_csv(plan.out / "figures.csv")) == 10
    # Without further figures there is no such table.
    plain = replace(plan, selection=replace(plan.selection, metrics={}), out=plan.out / "plain")
    write_comparison(plain, runs)
    assert not (plain.out / "figures.csv").exists()
    assert "figures" not in (plain.out / "table.md").read_text()


def test_shares_that_are_in_per_cent_already_stay_so(plan):
    def change(_, __, metrics):
        metrics["mmlu"]["acc"] *= 100
        return metrics

    figures = frame_of(plan, trained(plan, change))
    rows = {cells[:2]: cells for cells in figure_rows(figures, "alpaca")}
    mean = 100 * np.mean([metrics_of(seed, "lora")["mmlu"]["acc"] for seed in range(4)])
    assert float(rows["mmlu", "LoRA"][2]) == pytest.approx(mean, abs=1e-3)
    row = figures.set_index(["figure", "entry"]).loc["mmlu", "lora"]
    assert row["low"] < row["mean"] < row["high"]


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("a/x", 1.0),
        ("a/y", 2.0),
        ("a", "a has x, y,none, and one of them has to be named"),
        ("a/z", "a has no z; it has x, y,none"),
        ("b", 3.0),
        ("b/x,first", 3.0),
        ("c/x", "c has x,first, x,last, and one of them has to be named"),
        ("c/x,last", 5.0),
        ("d", "the run has no d; it has a, b, c, e"),
        ("e", "e has no figure; it has nothing"),
    ],
)
def test_a_figure_is_found_by_its_split_and_name(source, expected):
    metrics = {
        "a": {"x": 1.0, "y,none": 2.0},
        "b": {"x,first": 3.0, "x_stderr,first": 0.1},
        "c": {"x,first": 4.0, "x,last": 5.0},
        "e": {},
    }
    found = find_figure(metrics, source)
    assert (found.value if found.missing is None else found.missing) == expected
    assert (found.missing is None) == math.isfinite(found.value)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"metrics": "mmlu"}, r"comparison table: metrics is 'mmlu'; accepted: \[\"SPLIT/METRIC\"\], each once, or a"),
        ({"metrics": ["a", "a"]}, "metrics is .*; accepted"),
        ({"metrics": [3]}, "metrics is .*; accepted"),
        ({"metrics": {"mmlu": 3}}, 'metrics has mmlu = 3; accepted: "SPLIT" or "SPLIT/METRIC"'),
        ({"metrics": {"mmlu": "mmlu/"}}, "metrics has mmlu = 'mmlu/'; accepted"),
        ({"metrics": {"score": "mmlu/acc"}}, "metrics has 'score'; accepted: other names than 'score'"),
        (
            {"paper": {"alpaca": {"mlmu": 1.0}}},
            "paper of loldu has mlmu of alpaca; accepted: score, mmlu, dino, bbh, drop",
        ),
        ({"paper": {"alpaca": {"mmlu": "46"}}}, "paper of loldu has mmlu of alpaca '46'; accepted: a number"),
        ({"paper": {"numbers": {"mmlu": 1}}}, "paper of loldu has numbers {'mmlu': 1}; accepted: a number"),
        ({"paper": {"alpacas": 1}}, "paper of loldu has alpacas; accepted: numbers, alpaca"),
    ],
)
def test_what_cannot_be_said_of_figures(plan, changes, message):
    table = json.loads(json.dumps(plan.recipe.table["comparisons"]["table"]))
    if "paper" in changes:
        table["entries"]["loldu"] |= changes
    else:
        table |= changes
        del table["entries"]["loldu"]["paper"]
    with pytest.raises(OptionError, match=message):
        select_entries(replace(plan.recipe, table={**plan.recipe.table, "comparisons": {"table": table}}))


def test_figures_of_a_list_are_named_as_they_are_written(plan):
    table = {**plan.recipe.table["comparisons"]["table"], "metrics": ["mmlu/acc", "drop"], "entries": {}}
    recipe = replace(plan.recipe, table={**plan.recipe.table, "paper": {}, "comparisons": {"table": table}})
    selection = select_entries(recipe, ["lora"])
    assert selection.metrics == {"mmlu/acc": "mmlu/acc", "drop": "drop"}
