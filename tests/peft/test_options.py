"""What is said of values that a configuration does not take, and of names in it that match nothing."""

import json
import warnings

import numpy as np
import pytest
import torch
from peft import PeftModel, TaskType, get_peft_model
from plugin_models import layers, tiny_bert, tiny_gpt2, tiny_t5
from safetensors.torch import load_file
from torch import nn
from transformers import BertForQuestionAnswering, BertForTokenClassification

from lowrank_ldu.peft import LolduConfig

NAMES = "accepted: names of modules, a regular expression, or None"
LISTED = "accepted: a list of names of modules, or None"
BLOCKS = "accepted: an integer from 0 on, a list of them, or None"
FILE = "adapter_model.safetensors"
FLAGS = ["init_weights", "fan_in_fan_out", "preserving", "train_sigma", "keep_base", "clip_rank", "inference_mode"]


def model():
    torch.manual_seed(0)
    return nn.ModuleDict({"query": nn.Linear(8, 8), "value": nn.Linear(8, 8), "head": nn.Linear(8, 2)})


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        *(({flag: value}, TypeError, f"{flag} is {value!r}; acc") for flag in FLAGS for value in ("no", 1.5, None)),
        ({"r": 0}, ValueError, "r is 0; accepted: an integer from 1 on"),
        ({"r": "8"}, TypeError, "r is '8'; accepted: an integer from 1 on"),
        ({"alpha": 10**400}, ValueError, "alpha is 1000"),
        ({"seed": 2**63}, ValueError, f"seed is {2**63}; accepted: an integer from 0 to {2**63 - 1}"),
        ({"seed": 2**32, "basis": "random"}, ValueError, f"accepted: an integer from 0 to {2**32 - 1}"),
        ({"bias": ["all"]}, ValueError, "bias is ['all']; accepted: 'none', 'all', 'loldu_only'"),
        ({"init": np.eye(2)}, ValueError, "init is array([[1., 0.], [0., 1.]]); accepted: 'regular_ldu'"),
        ({"target_modules": 5}, TypeError, f"target_modules is 5; {NAMES}"),
        ({"target_modules": [1, 2]}, TypeError, f"target_modules is [1, 2]; {NAMES}"),
        ({"target_modules": "("}, ValueError, "target_modules is '(', not a regular expression (missing )"),
        ({"exclude_modules": {"query": 1}}, TypeError, f"exclude_modules is {{'query': 1}}; {NAMES}"),
        ({"exclude_modules": "a{99999999999}"}, ValueError, "exclude_modules is 'a{99999999999}', not a regular"),
        ({"modules_to_save": "head"}, TypeError, f"modules_to_save is 'head'; {LISTED}"),
        ({"modules_to_save": ["("]}, ValueError, "a name in modules_to_save is '(', not a regular expression"),
        ({"layers_to_transform": "3"}, TypeError, f"layers_to_transform is '3'; {BLOCKS}"),
        ({"layers_to_transform": [1.5]}, TypeError, f"layers_to_transform is [1.5]; {BLOCKS}"),
        ({"layers_to_transform": True}, TypeError, f"layers_to_transform is True; {BLOCKS}"),
        ({"layers_pattern": 3, "layers_to_transform": 1}, TypeError, "layers_pattern is 3; accepted: a name of lists"),
        ({"layers_pattern": ["("], "layers_to_transform": 1}, ValueError, "layers_pattern is '(', not a regular"),
        ({"rank_pattern": ["query"]}, TypeError, "rank_pattern is ['query']; accepted: a dict of names"),
        ({"rank_pattern": {1: 2}}, TypeError, "rank_pattern is {1: 2}; accepted: a dict of names"),
        ({"rank_pattern": {"(": 2}}, ValueError, "a key of rank_pattern is '(', not a regular expression"),
        ({"rank_pattern": {"query": 0}}, ValueError, "rank_pattern['query'] is 0; accepted: an integer from 1 on"),
        ({"alpha_pattern": 5}, TypeError, "alpha_pattern is 5; accepted: a dict of names"),
        ({"alpha_pattern": {"query": "1"}}, TypeError, "alpha_pattern['query'] is '1'; accepted: a positive"),
        ({"layer_kinds": {"query": "dense"}}, TypeError, "layer_kinds is {'query': 'dense'}; accepted: names of"),
        ({"lora_obstacles": {"query": 1}}, TypeError, "lora_obstacles is {'query': 1}; accepted: names of modules to"),
        ({"layer_kinds": {"query": []}}, TypeError, "layer_kinds is {'query': []}; accepted: names of"),
    ],
)
def test_values_that_no_field_takes(options, error, message):
    with pytest.raises(error) as raised:
        LolduConfig(**options)
    assert message in str(raised.value)
    assert "; accepted: " in str(raised.value)
    assert len(str(raised.value).splitlines()) == 1


def test_values_of_other_libraries_are_kept_as_those_of_python(tmp_path):
    config = LolduConfig(
        r=np.int64(4),
        alpha=np.float32(2),
        seed=np.int32(3),
        target_modules=("query",),
        modules_to_save={"head"},
        layers_to_transform=range(2),
        rank_pattern={"query": np.int64(2)},
        alpha_pattern=None,
        train_sigma=np.False_,
    )
    config.save_pretrained(tmp_path)
    written = json.loads((tmp_path / "adapter_config.json").read_text())
    assert (written["r"], written["alpha"], written["seed"], written["train_sigma"]) == (4, 2.0, 3, False)
    assert (written["modules_to_save"], written["layers_to_transform"]) == (["head"], [0, 1])
    assert (written["rank_pattern"], written["alpha_pattern"]) == ({"query": 2}, {})
    assert LolduConfig.from_pretrained(tmp_path) == config


def test_the_list_of_the_caller_is_not_added_to():
    names = ["pooler"]
    get_peft_model(tiny_bert(), LolduConfig(r=4, task_type=TaskType.SEQ_CLS, modules_to_save=names))
    assert names == ["pooler"]


CLOSE = "; layers of this model that it could match end with: "


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rank_pattern": {"querry": 1, "query": 2}}, f"rank_pattern: 'querry' matches no layer with.*{CLOSE}query"),
        ({"alpha_pattern": {"head": 1, "valeu": 1}}, "alpha_pattern: 'head', 'valeu' match no layer with this adapter"),
        ({"modules_to_save": ["haed"]}, f"modules_to_save: 'haed' matches no module{CLOSE}head"),
        ({"modules_to_save": ["score"]}, "modules_to_save: 'score' matches no module"),
        ({"exclude_modules": ["value", "quer"]}, f"exclude_modules: 'quer' matches no module{CLOSE}query"),
        ({"exclude_modules": "quer", "modules_to_save": ["head"]}, "exclude_modules: 'quer' matches no module"),
        ({"target_modules": ["query", "valeu"]}, f"target_modules: 'valeu' matches no module{CLOSE}value"),
    ],
)
def test_names_that_match_nothing_are_warned_of_once(tmp_path, options, message):
    config = LolduConfig(**{"r": 2, "target_modules": ["query", "value"], **options})
    with pytest.warns(UserWarning, match=message) as caught:
        wrapped = get_peft_model(model(), config)
    assert len(caught) == 1
    wrapped.save_pretrained(tmp_path)
    PeftModel.from_pretrained(model(), tmp_path)  # silently: a warning would be an error


def test_names_that_match_are_not_warned_of():
    config = LolduConfig(
        r=2,
        target_modules=["query", "value"],
        rank_pattern={"^qu.*": 1},
        alpha_pattern={"query": 2},
        modules_to_save=["head", "score"],
        exclude_modules=["value"],
        clip_rank=True,
    )
    get_peft_model(model(), config)  # silently
    # Heads of which a model has one or the other.
    for task in (TaskType.SEQ_CLS, TaskType.TOKEN_CLS):
        get_peft_model(tiny_bert(), LolduConfig(r=4, task_type=task))


# Base, target, and the head that PEFT trains and saves with each task.
TASKS = {
    None: (tiny_bert, "query", None),
    TaskType.SEQ_CLS: (tiny_bert, "query", "classifier"),
    TaskType.TOKEN_CLS: (lambda: BertForTokenClassification(tiny_bert().config), "query", "classifier"),
    TaskType.QUESTION_ANS: (lambda: BertForQuestionAnswering(tiny_bert().config), "query", "qa_outputs"),
    TaskType.FEATURE_EXTRACTION: (tiny_bert, "query", None),
    TaskType.CAUSAL_LM: (tiny_gpt2, "c_attn", None),
    TaskType.SEQ_2_SEQ_LM: (tiny_t5, "v", None),
}


@pytest.mark.parametrize("task", [None, *TaskType])
@pytest.mark.parametrize("saved", [None, ["embeddings"]], ids=str)
def test_clipped_ranks_with_every_task(task, saved, tmp_path):
    base, target, head = TASKS[task]
    config = LolduConfig(r=40, target_modules=[target], task_type=task, clip_rank=True, modules_to_save=saved)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="modules_to_save: 'embeddings' matches no module")
        # Of one configuration, in which the ranks of neither are written.
        models = [get_peft_model(base(), config) for _ in range(2)]
    assert not config.rank_pattern
    for wrapped in models:
        assert {layer.adapter("default").rank for layer in layers(wrapped)} == {32}
        trained = {name for name, value in wrapped.named_parameters() if value.requires_grad}
        assert head is None or any(f"{head}.modules_to_save.default.weight" in name for name in trained)
        wrapped.save_pretrained(tmp_path)
        assert head is None or any(name.endswith(f"{head}.weight") for name in load_file(tmp_path / FILE))


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (("default", [1.0], "sum"), TypeError, "adapters is 'default'; accepted: a list of names of adapters"),
        ((["default"], "1", "sum"), TypeError, "weights is '1'; accepted: a list of finite numbers, one for each"),
        ((["default"], [np.nan], "sum"), TypeError, r"weights is \[nan\]; accepted: a list of finite numbers"),
        ((["default"], 1.0, "sum"), TypeError, "weights is 1.0; accepted: a list of finite numbers"),
        ((["default"], [1.0], "a.b"), ValueError, "adapter_name is 'a.b'; accepted: a name without dots"),
        ((["default"], [1.0], "default"), ValueError, "adapter_name is 'default', which is an adapter of"),
        ((["default"], [1.0], 5), ValueError, "adapter_name is 5; accepted: a name without dots"),
    ],
)
def test_sums_of_what_are_no_adapters_and_no_numbers(arguments, error, message):
    wrapped = get_peft_model(model(), LolduConfig(r=2, target_modules=["query"]))
    with pytest.raises(error, match=message):
        wrapped.add_weighted_adapter(*arguments)
    assert set(wrapped.peft_config) == {"default"}


def test_a_name_that_no_adapter_can_have():
    with pytest.raises(ValueError, match="adapter_name is 'a.b'; accepted: a name without dots"):
        get_peft_model(model(), LolduConfig(r=2, target_modules=["query"]), adapter_name="a.b")
