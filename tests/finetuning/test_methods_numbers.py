"""The numbers that a method's formula gives are those that its model trains."""

import pytest
import torch
from tiny_models import MODELS, OPTIONS, request_of

from lowrank_ldu.finetuning import METHODS, get_method
from lowrank_ldu.finetuning.methods.modules import plain_name

# Features, and the layers that are adapted: query and value of two blocks.
D, LAYERS, FEEDFORWARD = 16, 4, 24
PAIR = 2 * (D + D)


def prepared(name, options, kind="bert", **others):
    model = MODELS[kind]()
    return get_method(name).prepare(model, OPTIONS.get(name, {}) | options, request_of(kind, **others))


@pytest.mark.parametrize(
    ("name", "options", "numbers"),
    [
        ("lora", {}, LAYERS * PAIR),
        ("lora", {"lora_bias": True}, LAYERS * (PAIR + D)),
        ("lora", {"bias": "lora_only"}, LAYERS * (PAIR + D)),
        ("lora", {"rank_pattern": {"query": 1}}, LAYERS // 2 * (PAIR // 2 + PAIR)),
        ("lora", {"rank_pattern": {"layer.0.attention.self.query": 1}}, PAIR // 2 + 3 * PAIR),
        ("lora", {"exclude_modules": ["query"]}, LAYERS // 2 * PAIR),
        ("lora", {"layers_to_transform": [1]}, LAYERS // 2 * PAIR),
        ("dora", {}, LAYERS * (PAIR + D)),
        ("pissa", {}, LAYERS * PAIR),
        ("adalora", {}, LAYERS * 3 * (D + D + 1)),
        ("vera", {}, LAYERS * (4 + D)),
        ("vera", {"bias": "vera_only"}, LAYERS * (4 + D + D)),
        ("fourierft", {}, LAYERS * 20),
        ("fourierft", {"n_frequency_pattern": {"value": 7}}, 2 * 20 + 2 * 7),
        ("oft", {}, LAYERS * 4 * 6),
        ("oft", {"block_share": True}, LAYERS * 6),
        ("oft", {"r": 2, "oft_block_size": 0}, LAYERS * 2 * 28),
        ("ia3", {}, LAYERS * D),
        ("vblora", {}, 5 * 4 + LAYERS * 2 * 5 * (4 + 4)),
        ("unilora", {}, 40),
        ("psoft", {}, LAYERS * (10 + 5 + 5)),
        ("psoft", {"psoft_orth": False, "psoft_mag_a": False}, LAYERS * (25 + 5)),
        ("tinylora", {}, LAYERS * 7),
        ("tinylora", {"weight_tying": 0.5}, 2 * 7),
        ("tinylora", {"weight_tying": 1.0}, 7),
        ("beft", {}, LAYERS * D),
        ("melora", {}, LAYERS * PAIR),
        ("melora", {"n": 1}, LAYERS * PAIR),
        ("melora", {"n": 8}, LAYERS * PAIR),
        ("loldu", {}, LAYERS * (6 + 1)),
        ("loldu", {"train_sigma": False}, LAYERS * 6),
        ("loldu", {"core": "block", "block_size": 3}, LAYERS * (2 * 9 + 1)),
        ("loldu", {"r": 20, "clip_rank": True}, LAYERS * (16 + 1)),
        ("loldu", {"rank_pattern": {"query": 2}}, LAYERS // 2 * (6 + 1 + 2 + 1)),
        ("loldu", {"bias": "loldu_only"}, LAYERS * (6 + 1 + D)),
        ("ldu-core", {}, LAYERS * 9),
        ("ldu-core", {"train_sigma": True}, LAYERS * 10),
        ("ldu-pivots", {}, LAYERS * 9),
        ("ldu-basis", {}, LAYERS * 3),
        ("ldu-basis", {"core": "dense"}, LAYERS * 9),
    ],
)  # fmt: skip
def test_numbers_by_hand(name, options, numbers):
    found = prepared(name, options)
    assert found.expected_numbers == found.trained_numbers == numbers


@pytest.mark.parametrize(("name", "source"), [("ldu-pivots", "gradient"), ("ldu-basis", "activation")])
def test_a_budget_is_kept(name, source):
    found = prepared(name, {"fit_rank": None, "fit_budget": 50, "fit_source": source})
    assert 40 <= found.expected_numbers == found.trained_numbers <= 50
    assert len({*found.config.rank_pattern.values()}) > 1


@pytest.mark.parametrize(("kind", "targets"), [("bert", "all-linear"), ("llama", r".*\.(q_proj|up_proj|down_proj)")])
@pytest.mark.parametrize("name", [name for name in METHODS if name not in {"full", "head"}])
def test_layers_of_other_shapes(name, kind, targets):
    if name == "bitfit" and kind == "llama":
        return
    options = {"n_frequency": 20} if name == "fourierft" else {}
    found = prepared(name, options, kind, targets=targets)
    assert found.expected_numbers == found.trained_numbers
    heads = {each for each in found.trained() if found.in_whole(each)}
    assert len(heads) == (2 if kind == "bert" else 0)


@pytest.mark.parametrize("kind", MODELS)
@pytest.mark.parametrize("name", ["melora", "ldu-pivots", "ldu-basis", "loldu", "vera"])
def test_all_linear_layers_are_those_of_lora(name, kind):
    def layers(method):
        found = prepared(method, {}, kind, targets="all-linear")
        names = {plain_name(each) for each in found.trained() if not found.in_whole(each)}
        return {each.partition(".lora_")[0].partition(".loldu_")[0].partition(".vera_")[0] for each in names}

    assert layers(name) == layers("lora")
    assert len(layers(name)) == {"bert": 13, "llama": 14}[kind]


def test_all_biases():
    biases = [each for each, _ in MODELS["bert"]().named_parameters() if each.endswith("bias")]
    sizes = dict(MODELS["bert"]().named_parameters())
    every = sum(sizes[each].numel() for each in biases if each != "classifier.bias")
    found = prepared("lora", {"bias": "all"})
    assert found.expected_numbers == found.trained_numbers == LAYERS * PAIR + every
    found = prepared("bitfit", {})
    assert found.expected_numbers == found.trained_numbers == every


def test_scales_of_a_feedforward_layer_are_those_of_its_inputs():
    targets = ["value", "intermediate.dense", "output.dense"]
    found = prepared("ia3", {"feedforward_modules": ["output.dense"]}, targets=targets)
    # attention.output.dense takes 16 features and output.dense 24.
    assert found.expected_numbers == found.trained_numbers == 2 * (D + FEEDFORWARD + D + FEEDFORWARD)


def test_every_weight_and_the_head_alone():
    parameters = sum(value.numel() for value in MODELS["bert"]().parameters())
    head = 3 * (D + 1)
    full, probe = prepared("full", {}), prepared("head", {})
    assert full.expected_numbers == full.trained_numbers == parameters - head
    assert probe.expected_numbers == probe.trained_numbers == 0
    assert sum(value.numel() for value in probe.trained().values()) == head


@pytest.mark.parametrize("name", METHODS)
def test_adapters_of_a_bfloat16_model_are_float32(name):
    model = MODELS["bert"]().bfloat16()
    found = get_method(name).prepare(model, OPTIONS.get(name, {}), request_of("bert"))
    assert found.expected_numbers == found.trained_numbers
    own = {value.dtype for each, value in found.trained().items() if not found.in_whole(each)}
    assert own == ({torch.bfloat16} if name in {"full", "bitfit"} else set() if name == "head" else {torch.float32})
