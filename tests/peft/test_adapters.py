"""What PEFT does with adapters in memory, on LoLDU ones."""

import copy
import gc
import io
import math
import pickle
import weakref

import pytest
import torch
from half_precision import MULTIPLE, assert_as_near, error, references, wider
from peft import (
    LoraConfig,
    PeftModel,
    convert_to_lora,
    get_peft_model,
    get_peft_model_state_dict,
    inject_adapter_in_model,
    set_peft_model_state_dict,
)
from plugin_models import layers, logits, minilm, perturb, stored_bytes, tiny_bert, tokens
from torch import nn
from transformers import RobertaConfig, RobertaForSequenceClassification

from lowrank_ldu.peft import LolduConfig, LolduLayer

DTYPES = [torch.float32, torch.float16, torch.bfloat16]
SENTENCE = torch.tensor([[101, 2023, 2003, 1037, 2613, 6251, 102]])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_minilm_starts_as_the_base_merges_and_comes_back(dtype):
    start = logits(minilm(dtype), SENTENCE)
    plain = start, logits(minilm(dtype).to(wider(dtype)), SENTENCE)
    model = get_peft_model(minilm(dtype), LolduConfig(r=64)).eval()
    assert torch.equal(logits(model, SENTENCE), start)
    before = {name: value.clone() for name, value in model.named_parameters() if "loldu" not in name}
    # Large enough to tell, and small enough that the model's layers do not blow rounding up.
    trained = logits(perturb(model, 0.05), SENTENCE)
    exact = logits(copy.deepcopy(model).to(wider(dtype)), SENTENCE)
    assert_as_near(trained, exact, *plain)
    assert error(trained, start) > 2 * MULTIPLE * error(*plain)
    with model.disable_adapter():
        assert torch.equal(logits(model, SENTENCE), start)
    model.merge_adapter()
    assert_as_near(logits(model, SENTENCE), exact, *plain)
    model.unmerge_adapter()
    assert all(torch.equal(model.get_parameter(name), value) for name, value in before.items())
    assert torch.equal(logits(model, SENTENCE), trained)
    merged = model.merge_and_unload()
    assert not layers(merged)
    assert_as_near(logits(merged, SENTENCE), exact, *plain)


def test_a_head_of_several_layers_is_put_back_when_merged():
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    base = RobertaForSequenceClassification(RobertaConfig(vocab_size=30, max_position_embeddings=12, **sizes)).eval()
    model = perturb(get_peft_model(base, LolduConfig(r=4, modules_to_save=["classifier"])))
    ids = torch.randint(3, 30, (2, 6))
    expected = logits(model, ids)
    merged = model.merge_and_unload()
    assert type(merged.classifier).__name__ == "RobertaClassificationHead"
    torch.testing.assert_close(logits(merged, ids), expected)


def test_unload_leaves_the_base():
    model = perturb(get_peft_model(tiny_bert(), LolduConfig(r=8)))
    base = model.unload()
    assert not layers(base)
    assert torch.equal(logits(base), logits(tiny_bert()))


@pytest.mark.parametrize("autocast", [True, False])
@pytest.mark.parametrize("dtype", DTYPES[1:], ids=str)
def test_adapters_are_float32_unless_peft_is_told_not_to_widen_them(dtype, autocast):
    model = get_peft_model(tiny_bert(dtype), LolduConfig(r=8, alpha=3), autocast_adapter_dtype=autocast)
    assert torch.equal(logits(model.eval()), logits(tiny_bert(dtype)))
    # Scaled as a GradScaler would: float16 ends at 6e-8.
    (1e4 * model.train()(tokens()).logits.float().square().sum()).backward()
    for layer in layers(model):
        adapter = layer.adapter("default")
        assert adapter.offset.dtype == adapter.sigma.dtype == (torch.float32 if autocast else dtype)
        assert adapter.offset.grad.isfinite().all()
        assert adapter.offset.grad.any()


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"target_modules": ["query", "value"]}, ["0.query", "0.value", "1.query", "1.value"]),
        ({"target_modules": r".*layer\.1.*\.(query|key)"}, ["1.query", "1.key"]),
        ({"target_modules": ["query"], "layers_to_transform": 0}, ["0.query"]),
        ({"target_modules": ["query"], "layers_to_transform": [1], "layers_pattern": "layer"}, ["1.query"]),
        ({"target_modules": ["query"], "exclude_modules": r".*layer\.0.*"}, ["1.query"]),
        ({}, ["0.query", "0.value", "1.query", "1.value"]),
    ],
    ids=str,
)
def test_targets(options, expected):
    names = get_peft_model(tiny_bert(), LolduConfig(r=8, **options)).targeted_module_names
    assert {".".join((name.split(".")[3], name.split(".")[-1])) for name in names} == set(expected)


def test_all_linear_leaves_the_head_out():
    names = get_peft_model(
        tiny_bert(), LolduConfig(r=2, target_modules="all-linear", task_type="SEQ_CLS")
    ).targeted_module_names
    assert len(names) == 13
    assert "classifier" not in names


def test_patterns_set_rank_and_alpha():
    config = LolduConfig(
        r=8,
        target_modules=["query"],
        rank_pattern={r"layer\.0.*query": 4},
        alpha_pattern={"layer.1.attention.self.query": 2},
    )
    first, second = (layer.adapter("default") for layer in layers(get_peft_model(tiny_bert(), config)))
    assert (len(first.offset), first.sigma.item()) == (4, 1.0)
    assert (len(second.offset), second.sigma.item()) == (8, 0.25)


@pytest.mark.parametrize(("bias", "count"), [("all", 19), ("loldu_only", 4)])
def test_biases_are_trained_and_saved(tmp_path, bias, count):
    model = get_peft_model(tiny_bert(), LolduConfig(r=8, bias=bias))
    trained = [value for name, value in model.named_parameters() if value.requires_grad and name.endswith("bias")]
    assert len(trained) == count
    with torch.no_grad():
        for value in trained:
            value.add_(0.1)
    model.save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(tiny_bert(), tmp_path)
    assert torch.equal(logits(loaded.eval()), logits(perturb(model, 0.0)))


def test_adapters_of_a_layer_share_their_factors():
    model = get_peft_model(tiny_bert(), LolduConfig(r=8))
    before = stored_bytes(model)
    for number in range(100):
        model.add_adapter(f"n{number}", LolduConfig(r=8))
    # offset, sigma, its start; the pivots and the sample that tells the base again.
    assert stored_bytes(model) - before == 100 * len(layers(model)) * (4 * (8 + 1 + 1) + 8 * 8 + 4 * 32 + 2 * 4 * 8)
    assert all(len(layer.loldu_factors) == 1 for layer in layers(model))
    model.add_adapter("other", LolduConfig(r=8, pivoting="complete"))
    assert all(len(layer.loldu_factors) == 2 for layer in layers(model))


def test_a_deleted_adapter_leaves_nothing():
    model = get_peft_model(tiny_bert(), LolduConfig(r=8))
    keys, modules = set(model.state_dict()), len(list(model.modules()))
    model.add_adapter("other", LolduConfig(r=4, pivoting="complete"))
    factors = [weakref.ref(layer.loldu_factors.of("other")) for layer in layers(model)]
    model.delete_adapter("other")
    gc.collect()
    assert not any(reference() for reference in factors)
    assert (set(model.state_dict()), len(list(model.modules()))) == (keys, modules)
    assert not any("other" in repr(value) for layer in layers(model) for value in vars(layer).values())


@pytest.mark.parametrize("parametrization", ["diagonal", "normalized", "gram"])
def test_weighted_adapters_are_exact(parametrization):
    model = get_peft_model(tiny_bert(), LolduConfig(r=8, parametrization=parametrization))
    model.add_adapter("other", LolduConfig(r=8, parametrization=parametrization))
    perturb(model)
    model.add_weighted_adapter(["default", "other"], [0.7, -1.3], "sum")
    for layer in layers(model):
        first, second, both = (layer.get_delta_weight(name).double() for name in ("default", "other", "sum"))
        exact = copy.deepcopy(layer).double()
        expected = 0.7 * exact.get_delta_weight("default") - 1.3 * exact.get_delta_weight("other")
        assert_as_near(both.float(), expected, (0.7 * first - 1.3 * second).float(), expected)


def test_weighted_adapters_of_other_factors_are_refused():
    model = get_peft_model(tiny_bert(), LolduConfig(r=8))
    model.add_adapter("other", LolduConfig(r=4))
    with pytest.raises(ValueError, match=r"query.*do not share their factors"):
        model.add_weighted_adapter(["default", "other"], [1.0, 1.0], "sum")
    with pytest.raises(ValueError, match="combination_type is 'ties'"):
        model.add_weighted_adapter(["default"], [1.0], "sum", combination_type="ties")


def test_active_adapters_add_up():
    model = get_peft_model(tiny_bert(), LolduConfig(r=8))
    model.add_adapter("other", LolduConfig(r=8, pivoting="rook"))
    perturb(model)
    model.base_model.set_adapter(["default", "other"])
    near = references(model, tiny_bert(), tokens())
    assert_as_near(logits(model), *near)
    model.merge_adapter()
    assert_as_near(logits(model), *near)


def test_conversion_to_lora_is_exact():
    model = perturb(get_peft_model(minilm(), LolduConfig(r=16)))
    config, state = convert_to_lora(model, rank=16)
    assert isinstance(config, LoraConfig)
    lora = get_peft_model(minilm(), config)
    assert not set_peft_model_state_dict(lora, state).unexpected_keys
    # The numbers are far larger than the base's, and so is their rounding.
    near = references(model, copy.deepcopy(model).merge_and_unload(), SENTENCE)
    assert_as_near(logits(lora.eval(), SENTENCE), *near)


@pytest.mark.parametrize("low", [False, True])
def test_injection_without_a_peft_model(low):
    config = LolduConfig(r=8, target_modules=["query"])
    model = perturb(inject_adapter_in_model(config, tiny_bert()))
    state = get_peft_model_state_dict(model)
    other = inject_adapter_in_model(config, tiny_bert(), low_cpu_mem_usage=low)
    assert not set_peft_model_state_dict(other, state, low_cpu_mem_usage=low).unexpected_keys
    assert_as_near(logits(other), *references(model, tiny_bert(), tokens()))


def test_copies_and_pickles_compute_the_same():
    model = perturb(get_peft_model(tiny_bert(), LolduConfig(r=8, init="normal_0_1", pivoting="complete")))
    expected = logits(model)
    stream = io.BytesIO()
    torch.save(model, stream)
    stream.seek(0)
    again = get_peft_model(tiny_bert(), LolduConfig(r=8, init="normal_0_1", pivoting="complete", seed=1))
    again.load_state_dict(model.state_dict())
    for twin in (
        copy.deepcopy(model),
        pickle.loads(pickle.dumps(model)),  # noqa: S301  # written here
        torch.load(stream, weights_only=False),
        again,
    ):
        assert torch.equal(logits(twin.eval()), expected)


@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpointing_of_activations_gives_the_same_gradients(reentrant):
    def gradients(*, checkpointing):
        model = get_peft_model(tiny_bert(), LolduConfig(r=8, preserving=False, init="ones"))
        if checkpointing:
            model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": reentrant})
            model.enable_input_require_grads()
        model.train()(tokens()).logits.square().sum().backward()
        return [value.grad for value in model.parameters() if value.requires_grad]

    for plain, checkpointed in zip(gradients(checkpointing=False), gradients(checkpointing=True), strict=True):
        assert torch.equal(plain, checkpointed)


def test_compiles_without_a_graph_break():
    model = perturb(get_peft_model(tiny_bert(), LolduConfig(r=8)))
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    assert_as_near(compiled(tokens()).logits, *references(model, tiny_bert(), tokens()))
    compiled(tokens()).logits.sum().backward()
    assert all(layer.adapter("default").offset.grad.any() for layer in layers(model))


def test_a_base_on_meta_is_factored_when_its_numbers_come(tmp_path):
    source = perturb(get_peft_model(tiny_bert(), LolduConfig(r=8)))
    source.save_pretrained(tmp_path)
    with torch.device("meta"):
        base = tiny_bert()
    model = get_peft_model(base, LolduConfig(r=8))
    assert not any(layer.loldu_factors.of("default").ready for layer in layers(model))
    model.load_state_dict(source.state_dict(), assign=True)
    model.base_model.model.bert.embeddings.load_state_dict(source.base_model.model.bert.embeddings.state_dict())
    for name, buffer in tiny_bert().named_buffers():
        model.get_submodule("base_model.model." + name.rpartition(".")[0]).register_buffer(
            name.rpartition(".")[2], buffer
        )
    assert_as_near(logits(model.eval()), *references(source, tiny_bert(), tokens()))


def test_gathered_weights_are_what_is_factored_and_merged(monkeypatch):
    # What ZeRO-3 does: an empty weight but inside the context. The real library is not run.
    full, model = {}, nn.Sequential(nn.Linear(16, 12), nn.Linear(12, 4))
    expected = perturb(get_peft_model(copy.deepcopy(model), LolduConfig(r=4, target_modules=["0"])))

    class Gathered:
        def __init__(self, parameter):
            self.parameter = parameter

        def __enter__(self):
            self.parameter.data = full.get(id(self.parameter), self.parameter.data)

        def __exit__(self, *_):
            if id(self.parameter) in full:
                full[id(self.parameter)] = self.parameter.data.clone()
                self.parameter.data.fill_(math.nan)  # views of it that are kept hold nothing
                self.parameter.data = torch.empty(0)

    weight = model[0].weight
    full[id(weight)], weight.data = weight.data, torch.empty(0)
    monkeypatch.setattr("lowrank_ldu.peft.layer.gather_params_ctx", Gathered)
    adapted = get_peft_model(model, LolduConfig(r=4, target_modules=["0"]))
    layer, reference = layers(adapted)[0], layers(expected)[0]
    assert torch.equal(layer.loldu_factors.of("default").left, reference.loldu_factors.of("default").left)
    state = reference.loldu_adapter.state_dict(prefix="loldu_adapter.")
    state["loldu_adapter.default.pivot_rows"] = state["loldu_adapter.default.pivot_rows"].flip(0)
    for each in (layer, reference):
        before = each.loldu_factors.of("default").left.clone()
        each.load_state_dict(state, strict=False)
        assert not torch.equal(each.loldu_factors.of("default").left, before)
    assert torch.equal(layer.loldu_factors.of("default").left, reference.loldu_factors.of("default").left)
    adapted.merge_adapter()
    expected.merge_adapter()
    assert torch.equal(full[id(weight)], reference.get_base_layer().weight)
    adapted.unmerge_adapter()
    expected.unmerge_adapter()
    assert torch.equal(full[id(weight)], reference.get_base_layer().weight)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("way", ["made", "loaded", "by transformers"])
def test_adapters_of_inference_mode_can_be_trained(tmp_path, way, dtype):
    model = tiny_bert(dtype)
    config = LolduConfig(r=8, pivoting="complete", parametrization="gram")
    perturb(get_peft_model(tiny_bert(dtype), config)).save_pretrained(tmp_path)
    with torch.inference_mode():
        if way == "made":
            model = get_peft_model(model, config)
        elif way == "loaded":
            model = PeftModel.from_pretrained(model, tmp_path, is_trainable=True)
        else:
            model.load_adapter(str(tmp_path), is_trainable=True)
        model(tokens())
    model.train()(tokens()).logits.sum().backward()
    assert all(layer.adapter("default").offset.grad.any() for layer in layers(model))


def test_layers_keep_the_base_layer_class_for_peft():
    assert all(isinstance(layer, LolduLayer) for layer in layers(get_peft_model(tiny_bert(), LolduConfig(r=2))))
