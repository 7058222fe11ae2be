"""What methods say of options and requests that they cannot use."""

import math
import re
import sys
from pathlib import Path

import peft
import pytest
import torch
from tiny_models import MODELS, OPTIONS, batches_of, bert, request_of

from lowrank_ldu.errors import OptionError
from lowrank_ldu.finetuning import METHODS, get_method
from lowrank_ldu.finetuning.methods.peft_model import why_missing

ADAPTING = [name for name in METHODS if name not in {"full", "head", "bitfit"}]
OF_PEFT = [name for name in ADAPTING if name != "melora" and not name.startswith(("loldu", "ldu"))]
RANKED = [name for name in ADAPTING if "r" in get_method(name).options({}) and name != "oft"]


def refused(call):
    with pytest.raises(OptionError) as raised:
        call()
    message = str(raised.value)
    assert len(message.splitlines()) == 1
    return message


def prepare(name, options=None, model=None, **others):
    given = OPTIONS.get(name, {}) | (options or {})
    return get_method(name).prepare(model or bert(), given, request_of("bert", **others))


@pytest.mark.parametrize(("name", "near"), [("Lora", "lora"), ("ldu", "loldu"), ("ful", "full"), ("?", "full, head")])
def test_an_unknown_method(name, near):
    assert near in refused(lambda: get_method(name))


@pytest.mark.parametrize("name", METHODS)
def test_an_unknown_option(name):
    message = refused(lambda: get_method(name).options({"no_such_option": 1}))
    assert message.startswith(f"'no_such_option' is no option of method '{name}'; accepted: ")


@pytest.mark.parametrize(
    ("name", "option", "message"),
    [
        ("lora", "lora_alhpa", "accepted: lora_alpha"),
        ("lora", "rank", "accepted: rank_pattern"),
        ("lora", "use_dora", "it is method 'dora'"),
        ("lora", "eva_config", "starts from data"),
        ("lora", "modules_to_save", "trained_whole"),
        ("dora", "use_dora", "method 'dora' sets it"),
        ("pissa", "init_lora_weights", "method 'pissa' sets it"),
        ("adalora", "r", "the ranks are init_r and target_r"),
        ("beft", "bias", "accepted: "),
        ("ia3", "bias", "accepted: "),
        ("psoft", "lora_alpha", "accepted: psoft_alpha"),
        ("vblora", "save_only_topk_weights", "training could not be resumed"),
        ("full", "r", "accepted: none, full has no options"),
        ("melora", "alpha", "it is lora_alpha here"),
        ("loldu", "lora_dropout", "there is no dropout"),
        ("loldu", "lora_alpha", "it is alpha here"),
        ("loldu", "fit_rank", "accepted: "),
        ("loldu", "pivots_file", "method 'ldu-pivots' makes it"),
        ("ldu-basis", "basis_file", "the fit makes it; method 'loldu' takes one"),
        ("ldu-pivots", "r", "the rank is fit_rank"),
    ],
)
def test_an_option_that_the_method_cannot_use(name, option, message):
    found = refused(lambda: get_method(name).options({option: 1}))
    assert found.startswith(f"'{option}' is no option of method '{name}'")
    assert message in found


@pytest.mark.parametrize("name", RANKED)
def test_rank_zero(name):
    assert "r is 0; accepted: an integer from 1 on" in refused(lambda: get_method(name).options({"r": 0}))


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("lora", {"r": "8"}, "r is '8'; accepted: int"),
        ("lora", {"r": True}, "r is True; accepted: int"),
        ("lora", {"bias": "some"}, "bias is 'some'; accepted: 'none' or 'all' or 'lora_only'"),
        ("lora", {"lora_dropout": 1.5}, "lora_dropout is 1.5; accepted: a number from 0 to below 1"),
        ("lora", {"init_lora_weights": "pissa"}, "init_lora_weights is 'pissa'; accepted: True, False, 'gaussian'"),
        ("vera", {"layers_pattern": "layer"}, "layers_to_transform"),
        ("oft", {"r": 4}, "either r (4) or oft_block_size (32)"),
        ("adalora", {"tfinal": 9, "total_step": 9}, "Decrease `tfinal`/`tinit`"),
        ("adalora", {"total_step": 0}, "total_step is 0; accepted: an integer from 1 on"),
        ("fourierft", {"n_frequency": 0}, "n_frequency is 0; accepted: an integer from 1 on"),
        ("tinylora", {"init_weights": False}, "init_weights is False; accepted: True, 'uniform'"),
        ("unilora", {"theta_d_length": -1}, "theta_d_length is -1"),
        ("fourierft", {"scaling": math.nan}, "scaling is nan; accepted: a finite number"),
        ("melora", {"n": 0}, "n is 0; accepted: an integer from 1 on"),
        ("melora", {"lora_alpha": 0}, "lora_alpha is 0; accepted: a positive finite number"),
        ("loldu", {"pivoting": "some"}, "pivoting is 'some'; accepted: 'partial'"),
        ("loldu", {"core": "block"}, "block_size is None with core 'block'"),
        ("ldu-pivots", {"fit": "basis"}, "fit is 'basis'; accepted: 'pivots', or method 'ldu-basis'"),
        ("ldu-pivots", {"fit_rank": 2, "fit_budget": 9}, "fit_rank and fit_budget are both given"),
        ("ldu-pivots", {"fit_method": "svd"}, "fit_method is 'svd'; accepted: 'alternating', 'separate'"),
        ("ldu-basis", {"fit_rank": None}, "fit_rank and fit_budget are both given, or neither"),
        (
            "ldu-basis",
            {"fit_source": "loss"},
            "fit_source is 'loss'; accepted: 'gradient', 'scaled_gradient', '",
        ),
        ("ldu-basis", {"fit_source": "activation", "fit_method": "rook"}, "is 'rook'; accepted: 'complete', 'svd'"),
        ("ldu-basis", {"fit_batches": 0}, "fit_batches is 0; accepted: an integer from 1 on"),
    ],
)
def test_a_value_that_is_not_accepted(name, options, message):
    assert message in refused(lambda: get_method(name).options(options))


@pytest.mark.parametrize("name", ADAPTING)
def test_a_target_that_matches_nothing(name):
    message = refused(lambda: prepare(name, targets=["query", "valeu"]))
    assert message.startswith("target 'valeu' matches no module; ")
    assert "value" in message.partition(";")[2]


@pytest.mark.parametrize("name", ADAPTING)
def test_a_target_that_is_trained_whole(name):
    message = refused(lambda: prepare(name, targets=r".*(query|classifier)"))
    assert "matches 'classifier', which is trained whole" in message


@pytest.mark.parametrize("name", METHODS)
def test_a_head_that_is_not_there(name):
    message = refused(lambda: prepare(name, trained_whole=["clasifier"]))
    assert message.startswith("trained_whole has 'clasifier', which matches no module; ")
    assert "classifier" in message.partition(";")[2]


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("vblora", {"vector_length": 5}, "divisible by `vector_length` 5"),
        ("psoft", {"r": 17}, "less than or equal to min(in_features, out_features)"),
        ("fourierft", {"n_frequency": 257}, "the product is 256"),
        (
            "oft",
            {"oft_block_size": 5},
            "oft_block_size is 5 and layer 'bert.encoder.layer.0.attention.self.query'",
        ),
        ("melora", {"n": 3}, "n is 3 and the layer has 16 inputs and 16 outputs; accepted: a divisor of 16"),
        ("melora", {"n": 8, "r": 3}, "r is 3 with 8 mini LoRAs of 2 inputs"),
        ("loldu", {"r": 17}, "rank is 17; accepted: an integer from 1 to 16"),
        ("ldu-basis", {"fit_rank": 17}, "17"),
        ("vera", {"bias": "some"}, "some"),
    ],
)
def test_options_that_do_not_fit_the_layers(name, options, message):
    found = refused(lambda: prepare(name, options))
    assert message in found
    assert "query" in found or found.startswith(f"method {name!r}")


@pytest.mark.parametrize("name", ["ldu-pivots", "ldu-basis"])
def test_a_fit_without_batches(name):
    assert "batches is None" in refused(lambda: prepare(name, batches=None))


def test_targets_of_another_kind():
    assert "LayerNorm" in refused(lambda: prepare("melora", targets=["LayerNorm"]))
    assert "targets is empty" in refused(lambda: prepare("lora", targets=[]))
    assert "trained_whole is empty" in refused(lambda: prepare("head", trained_whole=[]))
    assert "has no biases" in refused(lambda: get_method("bitfit").prepare(MODELS["llama"](), {}, request_of("llama")))


def test_adalora_needs_the_number_of_steps():
    assert "total_step is None" in refused(lambda: prepare("adalora", total_steps=None))
    assert prepare("adalora", {"total_step": 5}, total_steps=None).config.total_step == 5
    assert prepare("adalora", total_steps=7).config.total_step == 7


@pytest.mark.parametrize("name", OF_PEFT)
def test_a_method_that_peft_lacks_is_said_to_be_unavailable(name, monkeypatch):
    method = get_method(name)
    assert method.unavailable() is None
    monkeypatch.delattr(peft, method.config_name)
    reason = method.unavailable()
    assert reason == f"the installed peft {peft.__version__} has no {method.config_name}"
    assert refused(lambda: method.options({})) == (
        f"method {name!r} is unavailable: {reason}; accepted: another method"
    )


def test_a_class_that_the_text_of_peft_does_not_have_is_looked_up(monkeypatch):
    monkeypatch.delitem(sys.modules, "peft")
    assert why_missing("peft", "LoraConfig") is None
    assert "peft" not in sys.modules
    monkeypatch.setitem(sys.modules, "peft", peft)
    assert why_missing("peft", "NoSuchConfig") == f"the installed peft {peft.__version__} has no NoSuchConfig"


def test_without_peft_other_methods_are_there(monkeypatch):
    monkeypatch.setitem(sys.modules, "peft", None)
    monkeypatch.setitem(sys.modules, "lowrank_ldu.peft", None)
    assert "pip install 'lowrank-ldu[finetune]'" in get_method("lora").unavailable()
    assert "pip install 'lowrank-ldu[finetune]'" in get_method("loldu").unavailable()
    assert [name for name, method in METHODS.items() if method.unavailable() is None] == [
        "full",
        "head",
        "bitfit",
        "melora",
    ]
    prepare("melora")


@pytest.mark.parametrize("name", ["lora", "melora", "vblora"])
def test_what_is_drawn_depends_on_the_seed_alone(name):
    def numbers(seed, before):
        torch.manual_seed(before)
        return [value.detach() for value in prepare(name, model=bert(), seed=seed).trained().values()]

    first, again, other = numbers(0, 1), numbers(0, 2), numbers(1, 1)
    assert all(torch.equal(one, two) for one, two in zip(first, again, strict=True))
    assert not all(torch.equal(one, two) for one, two in zip(first, other, strict=True))


def test_options_may_name_other_targets():
    found = prepare("lora", {"target_modules": ["key"]})
    assert {name.split(".")[8] for name in found.trained() if "lora" in name} == {"key"}


def test_a_frozen_head_is_left_out_of_the_task_type():
    found = prepare("lora", trained_whole=[])
    assert found.trained_numbers == found.expected_numbers == 2 * 32 * 4
    assert found.config.task_type is None
    assert prepare("lora").config.task_type == "SEQ_CLS"
    assert batches_of("bert")[0]["labels"].max() < 3


def test_a_head_whose_name_ends_like_another_ones():
    model = bert()
    model.add_module("pre_classifier", torch.nn.Linear(16, 16))
    assert "accepted: 'pre_classifier' among the names" in refused(lambda: prepare("lora", model=model))
    both = prepare("lora", model=model, trained_whole=["pre_classifier", "classifier"])
    assert both.trained_numbers == both.expected_numbers


def test_the_page_lists_every_method():
    page = (Path(__file__).parents[2] / "docs" / "methods.md").read_text(encoding="utf-8")
    assert re.findall(r"^\| `([a-z0-9-]+)` \|", page, re.MULTILINE) == list(METHODS)
