"""What shows of a method and its model before anything is loaded."""

import copy

import pytest
import torch
from tiny_models import MODELS, OPTIONS, request_of
from tiny_text_models import offline, save_model

from lowrank_ldu.errors import OptionError
from lowrank_ldu.finetuning import METHODS, Choice, get_method, load_recipe
from lowrank_ldu.finetuning.configuration import configure
from lowrank_ldu.finetuning.model_check import check_models

_offline = pytest.fixture(offline, scope="module", autouse=True)


@pytest.fixture(scope="module", params=MODELS)
def meta_model(request):
    with torch.device("meta"):
        return request.param, MODELS[request.param]()


def needing_a_head(method, kind):
    return method == "head" and kind == "llama"


@pytest.mark.parametrize("name", METHODS)
def test_a_model_without_numbers_is_accepted_where_it_fits_and_stays_as_it_is(meta_model, name):
    kind, model = meta_model
    method = get_method(name)
    if method.unavailable() is not None or needing_a_head(name, kind) or (name, kind) == ("bitfit", "llama"):
        pytest.skip("of no use there")
    before = {key: value.requires_grad for key, value in model.named_parameters()}
    method.check_model(model, OPTIONS.get(name, {}), request_of(kind))
    assert {key: value.requires_grad for key, value in model.named_parameters()} == before
    if method.adapts_layers:
        with pytest.raises(OptionError, match="target 'nope' matches no module; "):
            method.check_model(model, OPTIONS.get(name, {}), request_of(kind, targets=["nope"]))
    with pytest.raises(OptionError, match="trained_whole has 'none', which matches no module"):
        method.check_model(model, OPTIONS.get(name, {}), request_of(kind, trained_whole=["none"]))


@pytest.mark.parametrize(
    ("name", "options", "targets", "message"),
    [
        ("loldu", {"r": 17}, ["query"], r"query' \(at most 16\).*: rank is 17; accepted: an integer from 1 to 16"),
        ("loldu", {"r": 17}, "all-linear", "rank is 17; accepted: an integer from 1 to 16"),
        ("ldu-core", {"r": 17}, ".*query", "rank is 17; accepted: an integer from 1 to 16"),
        ("ldu-pivots", {"fit_rank": 17}, ["query"], "rank is 17; accepted: an integer from 1 to 16, other targets"),
        ("ldu-basis", {"fit_rank": 17}, "all-linear", "rank is 17; accepted: an integer from 1 to 16"),
        ("melora", {"n": 5}, ["query"], "n is 5 and the layer has 16 inputs and 16 outputs; accepted: a divisor of 16"),
    ],
)
def test_ranks_that_do_not_fit_are_refused_as_they_are_with_the_numbers(name, options, targets, message):
    model = MODELS["bert"]()
    request = request_of("bert", targets=targets)
    with pytest.raises(OptionError, match=message):
        get_method(name).check_model(copy.deepcopy(model).to("meta"), options, request)
    with pytest.raises(OptionError, match="17|n is 5"):
        get_method(name).prepare(model, options, request)


def test_ranks_that_are_clipped_or_of_a_budget_are_left_to_the_run():
    model = MODELS["bert"]().to("meta")
    get_method("loldu").check_model(model, {"r": 17, "clip_rank": True}, request_of("bert"))
    get_method("loldu").check_model(model, {"r": 17, "rank_pattern": {"query": 2, "value": 3}}, request_of("bert"))
    get_method("ldu-basis").check_model(model, {"fit_budget": 40}, request_of("bert"))


def test_models_are_looked_at_once_and_those_that_are_not_here_are_named(tmp_path):
    save_model(tmp_path / "model")

    def config(recipe="glue", **choice):
        loaded = load_recipe(recipe)
        return configure(loaded, loaded.tasks[0], Choice(**choice), seed=0)

    own = config(model=str(tmp_path / "model"), method="lora")
    hub = config(model="nobody/nothing", method="lora")
    assert check_models([("", own), ("", hub), ("", hub), ("", config("text-to-image"))], download=False) == [
        "nobody/nothing",
        config("text-to-image").model,
    ]
    with pytest.raises(OptionError, match="^entry a: method 'loldu': layers .*rank is 768; accepted"):
        check_models([("", own), ("entry a: ", config(model=str(tmp_path / "model")))], download=False)
    digits = config("digits", settings={"r": 1000}, method="loldu")
    with pytest.raises(OptionError, match="rank is 1000; accepted: an integer from 1 to 96"):
        check_models([("", digits)], download=False)
