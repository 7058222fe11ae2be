"""Adapters on disk: what is in the file, on which base it is taken, and who can load it."""

import copy
import json
import subprocess
import sys

import pytest
import torch
from half_precision import MULTIPLE, assert_as_near, assert_within, error, gamma, wider
from peft import AutoPeftModelForSequenceClassification, PeftModel, get_peft_model, get_peft_model_state_dict
from peft import set_peft_model_state_dict as set_state
from plugin_models import layers, logits, minilm, perturb, tiny_bert, tokens
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import AutoModelForSequenceClassification

from lowrank_ldu.peft import LolduConfig

FILE = "adapter_model.safetensors"
ALWAYS = {"offset", "sigma", "initial_sigma", "base_sample"}


def saved(folder, base, size=0.2, **options):
    model = perturb(get_peft_model(base, LolduConfig(**{"r": 8} | options)), size)
    model.save_pretrained(folder)
    return model


@pytest.mark.parametrize(
    ("options", "names"),
    [
        ({}, ["pivot_rows"]),
        ({"pivoting": "complete", "parametrization": "gram"}, ["pivot_rows", "pivot_columns"]),
        ({"init": "normal_0_1"}, ["pivot_rows", "initial_diagonal"]),
        ({"basis": "svd"}, []),
        ({"bias": "none", "train_sigma": False}, ["pivot_rows"]),
    ],
    ids=str,
)
def test_a_file_holds_the_few_numbers_and_no_more(tmp_path, options, names):
    saved(tmp_path, tiny_bert(), **options)
    prefixes = [
        f"base_model.model.bert.encoder.layer.{block}.attention.self.{target}.loldu_adapter."
        for block in range(2)
        for target in ("query", "value")
    ]
    state = load_file(tmp_path / FILE)
    assert set(state) == {prefix + name for prefix in prefixes for name in {*ALWAYS, *names}}
    assert sum(tensor.numel() for tensor in state.values()) <= len(prefixes) * (4 * 8 + 2 + 32)


def test_a_file_of_minilm_is_small(tmp_path):
    saved(tmp_path, minilm(), r=64)
    assert (tmp_path / FILE).stat().st_size < 16_000


@pytest.mark.parametrize("low", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_loading_gives_the_same_model(tmp_path, dtype, low):
    model = saved(tmp_path, minilm(dtype), size=0.05, pivoting="complete", r=16)
    loaded = PeftModel.from_pretrained(minilm(dtype), tmp_path, low_cpu_mem_usage=low).eval()
    if low:
        # Without a search the factors are rebuilt at the stored pivots: the same to rounding.
        plain = logits(minilm(dtype)), logits(minilm(dtype).to(wider(dtype)))
        exact = logits(copy.deepcopy(model).to(wider(dtype)))
        assert_as_near(logits(loaded), exact, *plain)
        assert error(exact, plain[1]) > 2 * MULTIPLE * error(*plain)
    else:
        assert torch.equal(logits(loaded), logits(model))
    assert not any(tensor.is_meta for tensor in (*loaded.parameters(), *loaded.buffers()))


def test_auto_classes_load(tmp_path):
    base = tmp_path / "base"
    tiny_bert().save_pretrained(base)
    plain = AutoModelForSequenceClassification.from_pretrained(base)
    model = saved(tmp_path / "adapter", plain, task_type="SEQ_CLS", init="normal_0_1")
    for auto in (AutoPeftModelForSequenceClassification, AutoModelForSequenceClassification):
        assert torch.equal(logits(auto.from_pretrained(tmp_path / "adapter").eval()), logits(model))


def test_transformers_own_adapter_methods(tmp_path):
    model = saved(tmp_path, tiny_bert(), init="uniform_minus1_1")
    expected, start = logits(model), logits(tiny_bert())
    native = tiny_bert()
    native.load_adapter(str(tmp_path))
    assert torch.equal(logits(native), expected)
    # Not the file's smallest type, which not every collective takes.
    assert layers(native)[0].adapter("default").pivot_rows.dtype == torch.int64
    native.disable_adapters()
    assert torch.equal(logits(native), start)
    native.enable_adapters()
    with pytest.warns(UserWarning, match="Already found a `peft_config`"):
        native.add_adapter(LolduConfig(r=4, target_modules=["key"]), "other")
    assert torch.equal(logits(native), start)
    native.set_adapter("default")
    assert torch.equal(logits(native), expected)
    native.save_pretrained(tmp_path / "again")
    again = tiny_bert()
    again.load_adapter(str(tmp_path / "again"))
    assert torch.equal(logits(again), expected)


def other_pivots(state):
    """The same adapter as another machine could have made it: its pivots in another order."""
    return {name: value.flip(0) if name.endswith("pivot_rows") else value for name, value in state.items()}


def test_factors_are_those_at_the_stored_pivots_however_they_come(tmp_path):
    config = LolduConfig(r=8, target_modules=["query"])
    model = perturb(get_peft_model(tiny_bert(), config))
    state = other_pivots(get_peft_model_state_dict(model))
    expected = copy.deepcopy(model)
    set_state(expected, state)
    assert (logits(expected) - logits(model)).abs().max() > 1e-5
    expected.save_pretrained(tmp_path)
    native = tiny_bert()
    native.load_adapter(str(tmp_path))
    for loaded in (native, PeftModel.from_pretrained(tiny_bert(), tmp_path).eval()):
        assert torch.equal(logits(loaded), logits(expected))


def test_adapters_with_other_pivots_do_not_disturb_each_other():
    config = LolduConfig(r=8, target_modules=["query"])
    model = perturb(get_peft_model(tiny_bert(), config))
    expected = logits(model)
    state = other_pivots(get_peft_model_state_dict(model))
    model.add_adapter("other", LolduConfig(r=8, target_modules=["query"]))
    set_state(model, state, adapter_name="other")
    assert all(len(layer.loldu_factors) == 2 for layer in layers(model))
    assert torch.equal(logits(model), expected)
    model.set_adapter("other")
    assert not torch.equal(logits(model), expected)
    model.set_adapter("default")
    model.delete_adapter("other")
    assert all(len(layer.loldu_factors) == 1 for layer in layers(model))
    assert torch.equal(logits(model), expected)


def loaders(folder):
    def native(base):
        base.load_adapter(str(folder))
        return logits(base)

    return [
        lambda base: logits(PeftModel.from_pretrained(base, folder).eval()),
        lambda base: logits(PeftModel.from_pretrained(base, folder, low_cpu_mem_usage=True).eval()),
        native,
    ]


@pytest.mark.parametrize("loader", range(3), ids=["peft", "low memory", "transformers"])
def test_another_base_is_refused_by_the_name_of_the_layer(tmp_path, loader):
    saved(tmp_path, tiny_bert())
    with pytest.raises(ValueError, match=r"bert\.encoder\.layer\.0\.attention\.self\.query.*differs by"):
        loaders(tmp_path)[loader](tiny_bert(seed=1))


@pytest.mark.parametrize(
    ("number", "value"), [("offset", "nan"), ("sigma", "inf"), ("initial_sigma", "-inf"), ("initial_diagonal", "nan")]
)
@pytest.mark.parametrize("loader", range(3), ids=["peft", "low memory", "transformers"])
def test_numbers_that_are_not_finite_are_refused(tmp_path, loader, number, value):
    saved(tmp_path, tiny_bert(), init="normal_0_1")
    state = load_file(tmp_path / FILE)
    place = f"base_model.model.bert.encoder.layer.1.attention.self.value.loldu_adapter.{number}"
    state[place][-1] = float(value)
    save_file(state, tmp_path / FILE, metadata={"format": "pt"})
    expected = rf"layer\.1\.attention\.self\.value': {number} of adapter 'default' holds 1 entries.*: {value}; accepted"
    with pytest.raises(ValueError, match=expected):
        loaders(tmp_path)[loader](tiny_bert())


@pytest.mark.parametrize("loader", range(3), ids=["peft", "low memory", "transformers"])
def test_a_rounded_copy_of_the_base_is_accepted(tmp_path, loader):
    model = saved(tmp_path, minilm(), size=0.05, r=16)
    found = loaders(tmp_path)[loader](minilm(torch.bfloat16))
    # The base's own weights are rounded, in the plain model as in this one.
    plain = logits(minilm(torch.bfloat16)), logits(minilm())
    assert_as_near(found, logits(model), *plain)
    assert error(logits(model), plain[1]) > MULTIPLE * error(*plain)


def test_another_base_can_be_allowed(tmp_path):
    saved(tmp_path, tiny_bert(), base_check="warn")
    with pytest.warns(UserWarning, match="differs by"):
        PeftModel.from_pretrained(tiny_bert(seed=1), tmp_path)


@pytest.mark.longer
def test_without_the_import_peft_names_the_unknown_type(tmp_path):
    saved(tmp_path, tiny_bert())
    assert json.loads((tmp_path / "adapter_config.json").read_text())["peft_type"] == "LOLDU"
    script = "import sys; from peft import PeftConfig; PeftConfig.from_pretrained(sys.argv[1])"
    # KeyError: 'LOLDU'. PEFT has no way to find out who brings a method.
    done = subprocess.run(
        [sys.executable, "-c", script, tmp_path], check=False, capture_output=True, text=True, cwd=tmp_path
    )
    assert done.returncode != 0
    assert "LOLDU" in done.stderr


def test_an_adapter_is_not_made_for_a_merged_weight():
    model = perturb(get_peft_model(tiny_bert(), LolduConfig(r=8)))
    model.merge_adapter()
    with pytest.raises(ValueError, match=r"query.*merged.*unmerge_adapter"):
        model.add_adapter("other", LolduConfig(r=8))
    assert set(model.peft_config) == {"default"}


def test_a_whole_state_is_loaded_merged_or_not_as_it_was_saved(tmp_path):
    model, other = (perturb(get_peft_model(tiny_bert(), LolduConfig(r=8))) for _ in range(2))
    expected, plain = logits(model), copy.deepcopy(model.state_dict())
    model.merge_adapter()
    merged = copy.deepcopy(model.state_dict())
    with pytest.raises(ValueError, match=r"query' has adapters \[\] merged, and the state dict's has \['default'\]"):
        other.load_state_dict(merged)
    model.load_state_dict(merged)
    with pytest.raises(ValueError, match=r"query' has adapters \['default'\] merged, and the state dict's has \[\]"):
        model.load_state_dict(plain)
    model.save_pretrained(tmp_path)
    assert not any("merged" in name for name in load_file(tmp_path / FILE))
    assert torch.equal(logits(PeftModel.from_pretrained(tiny_bert(), tmp_path).eval()), expected)
    model.unmerge_adapter()
    other.load_state_dict(model.state_dict())
    assert torch.equal(logits(other), expected)


def test_bad_options_and_targets_are_refused():
    with pytest.raises(ValueError, match=r"layer\.0\.attention\.self\.query.*rank is 100"):
        get_peft_model(tiny_bert(), LolduConfig(r=100))
    with pytest.raises(ValueError, match="pivoting is 'none'"):
        LolduConfig(pivoting="none")
    with pytest.raises(TypeError, match="lora_alpha"):
        LolduConfig(lora_alpha=1)
    integers = tiny_bert()
    query = integers.bert.encoder.layer[1].attention.self.query
    query.weight = nn.Parameter(torch.ones(32, 32, dtype=torch.int8), requires_grad=False)
    with pytest.raises(TypeError, match=r"layer\.1\.attention\.self\.query.*int8"):
        get_peft_model(integers, LolduConfig(r=4))


@pytest.mark.parametrize("target", [["0"], ["out_proj"], "all-linear"], ids=str)
def test_attention_that_reads_weights_past_an_adapter_is_refused(target):
    with pytest.raises(ValueError, match="MultiheadAttention"):
        get_peft_model(nn.Sequential(nn.MultiheadAttention(8, 2)), LolduConfig(r=2, target_modules=target))
    with pytest.raises(ValueError, match=r"(TransformerEncoderLayer|MultiheadAttention)"):
        get_peft_model(
            nn.Sequential(nn.TransformerEncoderLayer(8, 2, 8)),
            LolduConfig(r=2, target_modules=target if target == "all-linear" else ["linear1"]),
        )


@pytest.mark.parametrize("targets", [["0"], ["0", "2"], "all-linear", r"\d"], ids=str)
def test_a_target_that_stands_twice_is_refused(targets):
    """PEFT would put the adapter in the first place alone, and merging would change both."""
    shared = nn.Linear(8, 8)
    model = nn.Sequential(shared, nn.ReLU(), shared, nn.Linear(8, 6))
    message = "target module '0' is the same module as '2'.*exclude_modules"
    with pytest.raises(ValueError, match=message):
        get_peft_model(copy.deepcopy(model), LolduConfig(r=3, target_modules=targets))
    left_out = LolduConfig(r=3, target_modules="all-linear", exclude_modules=["0"])
    assert [layer.name for layer in layers(get_peft_model(model, left_out))] == ["3"]


def test_a_target_inside_of_a_block_that_stands_twice_has_its_adapter_in_both():
    block = nn.Sequential(nn.Linear(8, 8), nn.ReLU())
    model = perturb(get_peft_model(nn.Sequential(block, block), LolduConfig(r=3, target_modules=["0.0"])))
    x = torch.randn(5, 8)
    before = model(x)
    model.merge_adapter()
    torch.testing.assert_close(model(x), before)


def test_merging_without_a_copy_of_the_base_comes_back_to_rounding():
    model = perturb(get_peft_model(tiny_bert(), LolduConfig(r=8, keep_base=False)))
    name = "base_model.model.bert.encoder.layer.0.attention.self.query.base_layer.weight"
    before = model.state_dict()[name].clone()
    model.merge_adapter()
    merged = layers(model)[0].get_base_layer().weight.detach().clone()
    assert all(layer._kept_base is None for layer in layers(model))
    model.unmerge_adapter()
    after = model.state_dict()[name]
    # The same update is added and taken off: each sum is rounded once.
    assert_within(after, before, gamma(1, before.dtype) * (merged.abs() + after.abs()))
    assert logits(model, tokens()).isfinite().all()


@pytest.mark.parametrize("way", ["load", "offset"])
def test_unmerging_subtracts_what_was_merged_whatever_the_numbers_are_by_then(tmp_path, way):
    def make():
        torch.manual_seed(1)
        return get_peft_model(nn.Sequential(nn.Linear(8, 8)), LolduConfig(r=3, target_modules=["0"], keep_base=False))

    other = perturb(make())
    other.save_pretrained(tmp_path)
    model = make()
    layer = layers(model)[0]
    before = layer.get_base_layer().weight.detach().clone()
    model.merge_adapter()
    if way == "load":
        model.load_adapter(tmp_path, "default")
    else:
        with torch.no_grad():
            layer.adapter("default").offset.add_(1.0)
    model.unmerge_adapter()
    torch.testing.assert_close(layer.get_base_layer().weight.detach(), before)
    if way == "load":
        x = torch.randn(5, 8)
        torch.testing.assert_close(model(x), other(x))
