"""Folders of PEFT's save_pretrained: read without PEFT, loaded into the plain model, refused where they do not fit."""

import copy
import json
import subprocess
import sys

import pytest
import torch
from half_precision import assert_as_near, references
from peft import get_peft_model
from safetensors.torch import load_file, save_file
from torch import nn
from transformers.pytorch_utils import Conv1D

from lowrank_ldu.adapters import AdapterError, load_adapter, read_adapter, save_adapter
from lowrank_ldu.nn import INITIALIZATIONS, PARAMETRIZATIONS, inject, lowrank_layers
from lowrank_ldu.nn.basis import WEIGHT_BASES
from lowrank_ldu.peft import LolduConfig


class Inner(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.turned = nn.Linear(20, 16), Conv1D(12, 16)
        self.norm, self.classifier = nn.LayerNorm(12), nn.Linear(12, 3)

    def forward(self, x):
        return self.classifier(self.norm(self.turned(torch.relu(self.first(x)))))


class Outer(nn.Module):
    """A head below the top, which PEFT's configuration names by its last part only."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.inner = Inner()

    def forward(self, x):
        return self.inner(x)


X = torch.linspace(-1, 1, 60).reshape(3, 20)


def saved(folder, base=Outer, **options):
    model = get_peft_model(
        base(),
        LolduConfig(**{"r": 4, "target_modules": ["first", "turned"], "init_weights": False, **options}),
    ).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.requires_grad and ("bias" in name or "classifier" in name):
                parameter.normal_()
    near = references(model, copy.deepcopy(model).merge_and_unload(), X)
    assert_as_near(model(X), *near)
    model.save_pretrained(folder)
    return near


@pytest.mark.parametrize(
    "options",
    [
        *({"init": init, "preserving": False} for init in INITIALIZATIONS),
        *({"basis": basis} for basis in WEIGHT_BASES),
        *({"parametrization": parametrization} for parametrization in PARAMETRIZATIONS),
        {"pivoting": "rook", "rank_pattern": {"first": 7}, "alpha_pattern": {"inner.turned": 2.0}, "alpha": 3.0},
        {"modules_to_save": ["classifier", "score"]},
        {"bias": "all"},
        {"bias": "loldu_only", "modules_to_save": ["classifier"]},
        {"bias": "all", "modules_to_save": ["classifier"]},
        {"train_sigma": False, "seed": 3},
    ],
    ids=str,
)
def test_the_plain_model_gives_the_same_outputs(tmp_path, options):
    expected = saved(tmp_path, **options)
    model = Outer().eval()
    assert sorted(load_adapter(model, tmp_path)) == ["inner.first", "inner.turned"]
    assert_as_near(model(X), *expected)
    kinds = {name: layer.kind.name for name, layer in lowrank_layers(model)}
    assert kinds == {"inner.first": "linear", "inner.turned": "transposed linear"}
    if "rank_pattern" in options:
        layers = dict(lowrank_layers(model))
        assert {name: (layer.rank, layer.options.alpha) for name, layer in layers.items()} == {
            "inner.first": (7, 3.0),
            "inner.turned": (4, 2.0),
        }


def change_config(folder, **changes):
    path = folder / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def change_tensors(folder, change):
    path = folder / "adapter_model.safetensors"
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path)


def test_one_flag_says_it_for_all_layers_where_there_is_no_list(tmp_path):
    expected = saved(tmp_path, target_modules=["turned"])
    change_config(tmp_path, layer_kinds=None)
    model = Outer().eval()
    load_adapter(model, tmp_path)
    assert_as_near(model(X), *expected)


def test_peft_is_not_needed(tmp_path):
    saved(tmp_path)
    script = (
        "import sys; sys.modules['peft'] = None; from lowrank_ldu.adapters import read_adapter;"
        "print(sorted(read_adapter(sys.argv[1]).layers))"
    )
    arguments = [sys.executable, "-P", "-c", script, tmp_path]
    out = subprocess.run(arguments, check=True, capture_output=True, text=True, cwd=tmp_path).stdout
    assert out == "['inner.first', 'inner.turned']\n"


P = "base_model.model.inner.first.loldu_adapter."


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"peft_type": "LORA"}, "an adapter of type 'LORA'; accepted: 'LOLDU'"),
        ({"r": "4"}, "layer 'inner.first': rank is '4'; accepted: an integer from 1 on"),
        ({"r": 5}, r"layer 'inner.first': offset has shape \(4,\); accepted: \(5,\)"),
        ({"alpha": "1"}, "layer 'inner.first': alpha is '1'; accepted: a positive finite number"),
        ({"init": 3}, "layer 'inner.first': init is 3; accepted: 'regular_ldu'"),
        ({"basis": "eigen"}, "layer 'inner.first': basis is 'eigen'"),
        ({"rank_pattern": [1]}, "rank_pattern is .*; accepted: an object"),
        ({"rank_pattern": {"(": 1}}, "rank_pattern or alpha_pattern holds what is no regular expression"),
        ({"layer_kinds": {"inner.first": "dense"}}, "layer 'inner.first': kind is 'dense'"),
        ({"modules_to_save": "head"}, "modules_to_save is 'head'; accepted: a list of names, or null"),
        ({"layer_kinds": None}, "layer 'inner.first' is a Linear in the model; accepted: kind 'transposed linear'"),
    ],
)
def test_configurations_that_do_not_fit(tmp_path, config, message):
    saved(tmp_path)
    change_config(tmp_path, **config)
    refused(tmp_path, message)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop(P + "sigma"), "layer 'inner.first': the adapter holds no sigma"),
        (lambda t: t.update({P + "offset": torch.full((4,), torch.inf)}), "offset holds entries that are not finite"),
        (lambda t: t.update({P + "pivot_rows": torch.tensor([0, 1, 2, 99])}), "'inner.first': rows holds indices from"),
        (lambda t: t.update({P + "pivot_rows": torch.tensor([0, 1, 1, 2])}), "pivot_rows holds an index twice"),
        (lambda t: t.update({P + "pivot_rows": torch.tensor([0, 1, -1, 2])}), "indices from -1 to 2; accepted: from 0"),
        (lambda t: t.update({P + "pivot_rows": torch.arange(4.0)}), "pivot_rows is float32; accepted: integers"),
        (lambda t: t.update({P + "extra": torch.zeros(1)}), r"unknown tensors \['extra'\]"),
        (lambda t: t.update({P + "base_sample": torch.zeros(32)}), "layer 'inner.first': the weight is not the one"),
        (lambda t: t.update({"base_model.model.none.bias": torch.zeros(1)}), "tensor 'none.bias' of the adapter: the"),
        (lambda t: [t.pop(key) for key in list(t) if "loldu" in key], "holds no layer of a LoLDU adapter"),
    ],
)
def test_tensors_that_do_not_fit(tmp_path, change, message):
    saved(tmp_path)
    change_tensors(tmp_path, change)
    refused(tmp_path, message)


def refused(folder, message):
    model = Outer()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(AdapterError, match=message):
        load_adapter(model, folder)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert list(lowrank_layers(model)) == []


def test_damaged_and_missing_files(tmp_path):
    saved(tmp_path)
    (tmp_path / "adapter_config.json").write_bytes(b"[" * 100_000)
    refused(tmp_path, "adapter_config.json: not JSON")
    (tmp_path / "adapter_config.json").write_text("[]")
    refused(tmp_path, "an adapter of type None")
    saved(tmp_path)
    path = tmp_path / "adapter_model.safetensors"
    path.write_bytes(path.read_bytes()[:-1])
    refused(tmp_path, "adapter_model.safetensors: not a safetensors file; it is truncated or was changed")
    path.unlink()
    refused(tmp_path, "accepted: a folder with adapter_config.json and adapter_model.safetensors")


def test_a_base_is_told_by_its_sample(tmp_path):
    saved(tmp_path)
    weight = Outer().inner.first.weight.detach()
    layer = read_adapter(tmp_path).layers["inner.first"]
    layer.bind(weight)
    with pytest.raises(AdapterError, match=r"layer 'inner.first': .* differs, by 0\.\d+ % where it was sampled, so"):
        layer.bind(weight.bfloat16())
    with pytest.warns(UserWarning, match=r"layer 'inner.first': .* differs, by 0\.\d+ % where it was sampled$"):
        layer.bind(weight.bfloat16(), accept_other_base=True)


@pytest.mark.parametrize("first", ["native", "peft"])
def test_a_folder_has_one_adapter(tmp_path, first):
    """Which of two would be read is nobody's guess."""

    def native():
        model = nn.Sequential(nn.Linear(8, 8))
        inject(model, ["0"], 4)
        save_adapter(model, tmp_path)

    def peft():
        get_peft_model(nn.Sequential(nn.Linear(8, 8)), LolduConfig(r=4, target_modules=["0"])).save_pretrained(tmp_path)

    if first == "peft":
        peft()
        with pytest.raises(ValueError, match="holds an adapter of PEFT's; accepted: another folder"):
            native()
        return
    native()
    peft()
    with pytest.raises(AdapterError, match=r"holds two adapters, adapter_config.json and adapter.json; accepted"):
        read_adapter(tmp_path)
