"""What is said to users who bring another library's words, or ask for what a model has not."""

import json
import warnings

import numpy as np
import pytest
import torch
from peft import PeftModel, get_peft_model
from torch import nn

from lowrank_ldu import diagnose, ldu, pissa, svd
from lowrank_ldu.adapters import read_adapter
from lowrank_ldu.analysis import SurveyOptions
from lowrank_ldu.analysis.measures.matrix import analyze_matrix
from lowrank_ldu.errors import OptionError
from lowrank_ldu.kernels.planner import Problem, choose_plan
from lowrank_ldu.nn import LDULayer, inject, set_plan
from lowrank_ldu.peft import LolduConfig


def model():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 2), nn.Linear(2, 3))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: LolduConfig(lora_alpha=16),
            r"LolduConfig\(\) got an unexpected keyword argument 'lora_alpha': it is",
        ),
        (lambda: LolduConfig(lora_dropout=0.1), "'lora_dropout': there is no dropout, .*; accepted: leave it out"),
        (lambda: LolduConfig(rank=8), "'rank': it is r here"),
        (lambda: LolduConfig(init_lora_weights="pissa"), "'init_lora_weights': it is init_weights here, or init and"),
        (lambda: LolduConfig(use_rslora=True), "'use_rslora': there is no such variant; alpha sets the scale"),
        (lambda: LolduConfig(target_module=["0"]), "'target_module': accepted: target_modules"),
        (lambda: inject(model(), ["0"], r=8), r"inject\(\) got an unexpected keyword argument 'r': it is rank here"),
        (lambda: inject(model(), ["0"], lora_alpha=8), "'lora_alpha': it is alpha here; sigma starts at alpha / rank"),
        (lambda: inject(model(), target_modules=["0"]), "'target_modules': it is targets here"),
        (lambda: inject(model(), ["0"], pivot="rook"), "'pivot': accepted: pivots, pivoting"),
        (
            lambda: LDULayer(nn.Linear(3, 3), r=8),
            r"LDULayer\(\) got an unexpected keyword argument 'r': it is",
        ),
        (lambda: ldu(np.eye(3), r=2), r"ldu\(\) got an unexpected keyword argument 'r': it is rank here"),
        (lambda: ldu(np.eye(3), pivots="rook"), "'pivots': accepted: pivoting"),
    ],
)
def test_keywords_of_others(call, message):
    with pytest.raises(TypeError, match=message) as raised:
        call()
    assert len(str(raised.value).splitlines()) == 1


def test_every_field_of_lora_is_known_or_explained():
    import dataclasses

    from peft import LoraConfig

    ours = {field.name for field in dataclasses.fields(LolduConfig)}
    for field in dataclasses.fields(LoraConfig):
        if field.name in ours:
            continue
        with pytest.raises(TypeError, match=f"got an unexpected keyword argument '{field.name}': .+"):
            LolduConfig(**{field.name: None})


def test_single_values_stand_for_tuples_of_one():
    options = SurveyOptions(ranks=8, pivoting="partial", targets=0.5)
    assert (options.ranks, options.pivoting, options.targets) == ((8,), ("partial",), (0.5,))
    for one in ({"ranks": np.int64(8)}, {"ranks": [8]}, {"ranks": np.array([8, 8])}, {"ranks": range(8, 9)}):
        assert SurveyOptions(**one).ranks == (8,)
    assert SurveyOptions(targets=np.float32(0.5)).targets == (0.5,)
    W = np.random.default_rng(0).standard_normal((4, 3))
    assert [figures.rank for figures in diagnose(W, ldu(W), 2)] == [2]
    for wrong in ({"ranks": "8"}, {"ranks": True}, {"pivoting": "p"}, {"pivoting": 3}, {"targets": "a"}):
        with pytest.raises(OptionError, match=f"{next(iter(wrong))}|rank is"):
            SurveyOptions(**wrong)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: SurveyOptions(ranks=None), "ranks is None; accepted: one or a sequence of them$"),
        (lambda: SurveyOptions(ranks=(8, None)), "rank is None; accepted: an integer from 1 to 2147483647$"),
        (lambda: SurveyOptions(ranks=8.5), "rank is 8.5; accepted: an integer from 1 to 2147483647$"),
        (lambda: SurveyOptions(threads=None), "threads is None; accepted: an integer from 1 to 1024$"),
        (lambda: SurveyOptions(select=3), "select is 3; accepted: a regular expression, or None$"),
        (
            lambda: SurveyOptions(targets=(0.5, "a")),
            "targets holds 'a'; accepted: relative errors above 0 and below 1, which the zero matrix has$",
        ),
        (
            lambda: SurveyOptions(rank=8),
            r"SurveyOptions\(\) got an unexpected keyword argument 'rank': it is ranks here",
        ),
        (
            lambda: diagnose(np.eye(3), ldu(np.eye(3)), "2"),
            "ranks is '2'; accepted: an integer from 1 to 3$",
        ),
        (lambda: diagnose(np.eye(3), ldu(np.eye(3)), [None]), "ranks is None; accepted: an integer from 1 to 3$"),
        (lambda: diagnose(np.eye(3), ldu(np.eye(3)), rank=2), "keyword argument 'rank': it is ranks here"),
        (lambda: pissa(np.eye(3), r=2), r"pissa\(\) got an unexpected keyword argument 'r': it is rank here"),
        (lambda: svd(np.eye(3), k=2), r"svd\(\) got an unexpected keyword argument 'k': it is rank here"),
    ],
)
def test_options_that_are_no_such_values(call, message):
    with pytest.raises((TypeError, ValueError), match=message) as raised:
        call()
    assert len(str(raised.value).splitlines()) == 1


def test_a_device_may_be_given_by_its_name():
    problems = [Problem(64, 256, 256, 16, torch.float32, device) for device in ("cpu", torch.device("cpu"))]
    assert choose_plan(problems[0]) == choose_plan(problems[1])
    assert choose_plan(problems[0], "factored").plan == "factored"


def test_a_measurement_that_was_not_made():
    W = torch.randn(6, 5, generator=torch.Generator().manual_seed(0))
    matrix = analyze_matrix(W, SurveyOptions(ranks=(2,), pivoting=("partial",), mode="exact"))
    assert matrix.at("ldu", 2, "partial").diagnostics.rank == 2
    for wrong in (("ldu", 2), ("svd", 2, None), ("ldu", 3, "partial"), ("ldu", 2, "rook")):
        with pytest.raises(KeyError, match=r"was not measured; accepted: .*\('ldu', 2, 'partial'\), .*\('pissa', 2\)"):
            matrix.at(*wrong)


def test_plans_that_cannot_be():
    adapted = model()
    with pytest.raises(ValueError, match=r"the model \(Sequential\) has no LoLDU layer; accepted: one that inject or"):
        set_plan(adapted, "reference")
    inject(adapted, ["0"], 4)
    set_plan(adapted, "packed")
    with pytest.raises(RuntimeError, match="factors of rank 4 do not hold the weight; accepted: full rank, 16 here"):
        adapted(torch.ones(2, 16))


@pytest.mark.parametrize(
    ("adapt", "ways"),
    [
        (lambda: inject(model(), "all-linear", 8), "other targets, or clip_rank=True"),
        (
            lambda: get_peft_model(model(), LolduConfig(r=8, target_modules="all-linear")),
            "exclude_modules or rank_pattern for what is smaller, or clip_rank=True",
        ),
    ],
)
def test_all_layers_that_are_too_small_are_named(adapt, ways):
    message = rf"layers '2' \(at most 2\), '3' \(at most 2\): rank is 8; accepted: an integer from 1 to 2, {ways}"
    with pytest.raises(ValueError, match=message):
        adapt()


def test_ranks_are_cut_on_demand(tmp_path):
    adapted = model()
    assert inject(adapted, "all-linear", 8, clip_rank=True) == ["0", "2", "3"]
    assert [adapted[place].factors.options.rank for place in (0, 2, 3)] == [8, 2, 2]
    config = LolduConfig(r=8, target_modules="all-linear", clip_rank=True, init_weights=False)
    wrapped = get_peft_model(model(), config).eval()
    wrapped.save_pretrained(tmp_path)
    assert {name: layer.record.options.rank for name, layer in read_adapter(tmp_path).layers.items()} == {
        "0": 8,
        "2": 2,
        "3": 2,
    }
    x = torch.randn(3, 16)
    assert torch.equal(PeftModel.from_pretrained(model(), tmp_path).eval()(x), wrapped(x))
    wrapped.add_adapter("other", LolduConfig(r=5, target_modules="all-linear", clip_rank=True))
    assert wrapped.peft_config["other"].rank_pattern == {"^2": 2, "^3": 2}


def test_a_name_that_matches_nothing_lists_what_could():
    with pytest.raises(ValueError, match=r"\{'query_proj'\} not found .* that it could match end with: 0, 2, 3"):
        get_peft_model(model(), LolduConfig(r=2, target_modules=["query_proj"]))


@pytest.mark.parametrize("small", [nn.ReLU(), nn.LayerNorm(3)])
def test_a_model_without_layers_is_said_to_have_none(small):
    with pytest.raises(ValueError, match=r"this model has no layer that it could match; accepted: nn\.Linear "):
        get_peft_model(nn.Sequential(small), LolduConfig(r=2, target_modules=["query"]))


def test_all_layers_that_are_too_small_for_their_own_ranks_are_named():
    config = LolduConfig(r=2, target_modules=["0", "2", "3"], rank_pattern={"0": 17, "3": 4})
    message = (
        r"layers '0' \(17, at most 16\), '3' \(4, at most 2\): ranks are too large; accepted: .* from 1 to 2, excl"
    )
    with pytest.raises(ValueError, match=message):
        get_peft_model(model(), config)
    wrapped = get_peft_model(model(), LolduConfig(r=2, target_modules=".*[023]"))
    with pytest.raises(
        ValueError, match=r"layers '2' \(at most 2\), '3' \(at most 2\): rank is 16; accepted: .*clip_rank"
    ):
        wrapped.add_adapter("second", LolduConfig(r=16, target_modules=".*[023]"))


def test_ranks_cut_for_one_model_are_not_taken_to_the_next():
    config = LolduConfig(r=8, target_modules=["0"], clip_rank=True)
    ranks = [
        get_peft_model(nn.Sequential(nn.Linear(size, size)), config).base_model.model[0].loldu_adapter["default"].rank
        for size in (4, 16, 2)
    ]
    assert ranks == [4, 8, 2]
    assert config.rank_pattern == {}


@pytest.mark.parametrize("place", ["README.md", "configuration/README.md"])
def test_a_readme_that_is_no_card_stays(tmp_path, place):
    folder = tmp_path / "configuration"
    folder.mkdir()
    (tmp_path / place).write_text("# Mine\n")
    LolduConfig(r=2, target_modules=["0"]).save_pretrained(folder)
    assert (tmp_path / place).read_text() == "# Mine\n"


@pytest.mark.parametrize("name", ["default", "other"])
def test_the_card_of_an_adapter_says_how_it_is_loaded(tmp_path, name):
    wrapped = get_peft_model(model(), LolduConfig(r=2, target_modules=["0"]), adapter_name=name)
    for _ in range(2):
        wrapped.save_pretrained(tmp_path)
    card = (tmp_path / "README.md").read_text()
    assert card.count("## Loading this adapter") == 1
    for line in ("pip install 'lowrank-ldu[peft]'", "import lowrank_ldu.peft", "KeyError: 'LOLDU'"):
        assert line in card
    folder = tmp_path if name == "default" else tmp_path / name
    config = json.loads((folder / "adapter_config.json").read_text())
    assert config["requires"] == "pip install 'lowrank-ldu[peft]', and import lowrank_ldu.peft before loading"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        PeftModel.from_pretrained(model(), folder)
