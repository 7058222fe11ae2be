"""Putting layers into a model, counting their parameters, merging and unloading them."""

import copy

import numpy as np
import pytest
import torch
from half_precision import assert_as_near, assert_within, gamma, references
from torch import nn

from lowrank_ldu.nn import (
    LDULayer,
    initial_diagonal,
    inject,
    lowrank_layers,
    merge,
    project_,
    set_plan,
    trainable_parameters,
    unload,
    unmerge,
)


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.query = nn.Linear(8, 8)
        self.value = nn.Linear(8, 8)
        self.norm = nn.LayerNorm(8)

    def forward(self, x):
        return self.norm(x + self.query(x) * self.value(x))


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.blocks = nn.Sequential(Block(), Block())
        self.classifier = nn.Linear(8, 3)

    def forward(self, x):
        return self.classifier(self.blocks(x))


@pytest.fixture
def model():
    return Model()


def disturb(model):
    for _, layer in lowrank_layers(model):
        with torch.no_grad():
            layer.offset.normal_()
    return model


@pytest.mark.parametrize(
    ("targets", "names"),
    [
        (["query"], ["blocks.0.query", "blocks.1.query"]),
        (["0.query", "blocks.1.value"], ["blocks.0.query", "blocks.1.value"]),
        (["classifier"], ["classifier"]),
        (r"blocks\.1\.(query|value)", ["blocks.1.query", "blocks.1.value"]),
        (
            "all-linear",
            ["blocks.0.query", "blocks.0.value", "blocks.1.query", "blocks.1.value", "classifier"],
        ),
    ],
)
def test_targets(model, targets, names):
    assert inject(model, targets, 2) == names
    assert [name for name, _ in lowrank_layers(model)] == names


def test_only_the_adapter_trains_and_step_0_is_the_base_model(model):
    base = copy.deepcopy(model)
    inject(model, ["query", "value"], 4)
    trainable = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert trainable == {
        f"blocks.{i}.{which}.{p}"
        for i in (0, 1)
        for which in ("query", "value")
        for p in ("adapter.offset", "adapter.sigma")
    }
    x = torch.randn(5, 8)
    assert torch.equal(model(x), base(x))


def test_a_further_call_adds_layers_and_leaves_the_first_ones_trainable(model):
    inject(model, ["query"], 2)
    inject(model, ["value"], 5)
    assert trainable_parameters(model).breakdown == "2 x (2 + 1) + 2 x (5 + 1)"
    with pytest.raises(ValueError, match="target 'query' matches layers that have an adapter already; accepted: oth"):
        inject(model, ["query"], 2)


def test_rank_defaults_to_each_layers_own(model):
    inject(model, "all-linear")
    assert [layer.rank for _, layer in lowrank_layers(model)] == [8, 8, 8, 8, 3]


def test_layers_draw_different_numbers(model):
    inject(model, ["query"], 4, init="normal_0_1", seed=5)
    first, second = (layer.adapter.initial_diagonal for _, layer in lowrank_layers(model))
    assert not torch.equal(first, second)
    again = Model()
    inject(again, ["query"], 4, init="normal_0_1", seed=5)
    assert torch.equal(next(lowrank_layers(again))[1].adapter.initial_diagonal, first)


@pytest.mark.parametrize("targets", ["all-linear", ["0"], ["2"]], ids=str)
def test_a_shared_layer_stays_shared(targets):
    shared = nn.Linear(4, 4)
    model = nn.Sequential(shared, nn.ReLU(), shared)
    base = copy.deepcopy(model)
    assert inject(model, targets, 2) == ["0", "2"]
    assert model[0] is model[2]
    assert trainable_parameters(model).layers == 1
    disturb(model)
    x = torch.randn(3, 4)
    near = references(model, base, x)
    unload(model)
    assert model[0] is model[2] is shared
    assert_as_near(model(x), *near)


@pytest.mark.parametrize(
    ("targets", "rank", "error", "message"),
    [
        (
            ["quary"],
            2,
            ValueError,
            "target 'quary' matches no module; layers of this model that it could match end with: query",
        ),
        ([], 2, ValueError, "targets is empty"),
        ("(", 2, ValueError, r"targets is '\(', not a regular expression"),
        (["norm"], 2, TypeError, "target 'norm' matches modules of type LayerNorm; accepted: nn.Linear"),
        ("all-linear", 4, ValueError, "layer 'classifier': rank is 4; accepted: an integer from 1 to 3"),
        (None, 2, TypeError, "targets is None; accepted: a sequence of module names"),
        ([0], 2, TypeError, r"targets is \[0\]; accepted: a sequence of module names"),
        (["query"], 2.5, TypeError, "^rank is 2.5; accepted: an integer from 1 on"),
        (["query"], 0, ValueError, "^rank is 0; accepted: an integer from 1 on"),
    ],
)
def test_a_refused_injection_leaves_the_model_as_it_was(model, targets, rank, error, message):
    before = {name: type(module) for name, module in model.named_modules()}
    with pytest.raises(error, match=message):
        inject(model, targets, rank)
    assert {name: type(module) for name, module in model.named_modules()} == before
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_a_refused_injection_leaves_a_model_of_inference_mode_as_it_was():
    with torch.inference_mode():
        model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 3))
        model[1].weight[0, 0] = torch.nan
    with pytest.raises(ValueError, match="layer '1': .* entries that are not finite"):
        inject(model, "all-linear", 2)
    assert all(parameter.requires_grad for parameter in model.parameters())


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda m: inject("model", ["query"]), "model is a str; accepted: a torch.nn.Module"),
        (lambda m: inject(m, ["query"], clip_rank="no"), "clip_rank is 'no'; accepted: True or False"),
        (lambda m: inject(m, ["query"], preserving=1.5), "^preserving is 1.5; accepted: True or False"),
        (lambda m: inject(m, ["query"], seed="a"), f"^seed is 'a'; accepted: an integer from 0 to {2**63 - 1}$"),
        (lambda m: inject(m, ["query"], basis="random", seed=2**32), f"seed is {2**32}; accepted: .* {2**32 - 1}$"),
        (lambda m: inject(m, ["query"], init=["zeros"]), r"init is \['zeros'\]; accepted: 'regular_ldu'"),
        (lambda m: LDULayer(m.classifier, train_sigma=None), "^train_sigma is None; accepted: True or False"),
        (lambda m: LDULayer("classifier"), "the layer is a str; accepted: nn.Linear"),
        (lambda m: LDULayer(nn.Linear(2, 2)).merge(keep_base="no"), "keep_base is 'no'; accepted: True or False"),
        (lambda m: list(lowrank_layers(None)), "model is a NoneType; accepted: a torch.nn.Module"),
        (lambda m: trainable_parameters([m]), "model is a list; accepted: a torch.nn.Module"),
        (lambda m: project_(None), "model is a NoneType; accepted: a torch.nn.Module"),
        (lambda m: set_plan(None, "auto"), "model is a NoneType; accepted: a torch.nn.Module"),
        (lambda m: set_plan(m, ["auto"]), r"plan is \['auto'\]; accepted: 'auto'"),
        (lambda m: merge(m, keep_base=None), "keep_base is None; accepted: True or False"),
        (lambda m: unmerge(5), "model is a int; accepted: a torch.nn.Module"),
        (lambda m: unload(m, merged="no"), "merged is 'no'; accepted: True or False"),
        (lambda m: initial_diagonal("ones", [1.0]), r"z is \[1.0\]; accepted: a torch.Tensor of shape \(r,\)"),
        (lambda m: initial_diagonal("normal_0_1", torch.ones(2), None), "seed is None; accepted: an integer from 0"),
    ],
)
def test_arguments_of_other_types(model, call, message):
    with pytest.raises((TypeError, ValueError), match=message) as raised:
        call(model)
    assert len(str(raised.value).splitlines()) == 1
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_any_integer_is_a_rank_and_a_seed(model):
    assert inject(model, ["classifier"], np.int64(8), clip_rank=True, seed=np.int64(1)) == ["classifier"]
    assert model.classifier.options.rank == 3


def test_models_without_linear_layers():
    with pytest.raises(ValueError, match=r"the model \(ReLU\) holds no linear layer that could be replaced"):
        inject(nn.ReLU(), "all-linear", 2)
    with pytest.raises(ValueError, match="holds no linear layer that could be replaced"):
        inject(nn.Linear(3, 3), "all-linear", 2)


def test_merge_unmerge_and_unload_a_model(model):
    base = copy.deepcopy(model)
    inject(model, ["query", "value"], 4)
    disturb(model)
    x = torch.randn(5, 8)
    before, near = model(x), references(model, base, x)
    assert_as_near(before, *near)
    merge(model)
    assert_as_near(model(x), *near)
    with pytest.raises(RuntimeError, match="layer 'blocks.0.query' is merged already"):
        merge(model)
    unmerge(model)
    assert torch.equal(model(x), before)
    for name, layer in lowrank_layers(model):
        assert torch.equal(layer.base_layer.weight, base.get_submodule(name).weight)
    unload(model, merged=False)
    assert not list(lowrank_layers(model))
    assert torch.equal(model(x), base(x))


def test_unload_leaves_a_plain_model_with_the_update(model):
    base = copy.deepcopy(model)
    inject(model, ["query"], 4)
    disturb(model)
    x = torch.randn(5, 8)
    near = references(model, base, x)
    unload(model)
    assert not list(lowrank_layers(model))
    assert set(model.state_dict()) == set(Model().state_dict())
    assert_as_near(model(x), *near)


def test_tied_weights_are_not_merged():
    """The update would land in the other module too, and a second merge on top of the first."""
    model = nn.Sequential(nn.Linear(8, 8, bias=False), nn.Linear(8, 8, bias=False))
    model[1].weight = model[0].weight
    inject(model, "all-linear", 4)
    disturb(model)
    weight = model[0].base_layer.weight.detach().clone()
    for change in (merge, unload):
        with pytest.raises(
            RuntimeError, match=r"the weight of layer '0' is tied to '1\.base_layer', which merging would"
        ):
            change(model)
    assert torch.equal(model[0].base_layer.weight, weight)
    unload(model, merged=False)
    assert model[0].weight is model[1].weight


def test_a_layer_tied_to_an_embedding_is_not_merged():
    model = nn.Module()
    model.embedding, model.head = nn.Embedding(20, 8), nn.Linear(8, 20, bias=False)
    model.head.weight = model.embedding.weight
    inject(model, ["head"], 4)
    with pytest.raises(RuntimeError, match="the weight of layer 'head' is tied to 'embedding'"):
        merge(model)


def test_an_overflowing_merge_names_the_layer(model):
    model.half()
    inject(model, ["1.value"], 4)
    with torch.no_grad():
        next(lowrank_layers(model))[1].offset.fill_(1e6)
    with pytest.raises(OverflowError, match="layer 'blocks.1.value': the merged weight overflows float16"):
        merge(model)


def test_a_base_that_stands_elsewhere_has_an_adapter_there_too():
    shared = nn.Linear(4, 4)
    model = nn.Sequential(LDULayer(shared, 2), shared, nn.Linear(4, 4))
    with pytest.raises(ValueError, match="target '1' matches layers that have an adapter already"):
        inject(model, ["1"], 2)


def test_a_layer_that_is_read_in_one_place_is_adapted_in_none():
    attention = nn.MultiheadAttention(8, 2)
    model = nn.Sequential(attention.out_proj, attention, nn.Linear(8, 8))
    with pytest.raises(TypeError, match="target '0' matches '0', whose weight MultiheadAttention"):
        inject(model, ["0"], 2)
    assert inject(model, "all-linear", 2) == ["2"]


@pytest.mark.parametrize("targets", [["linear1"], ["self_attn.out_proj"]])
def test_layers_whose_weight_is_read_past_them_are_refused(targets):
    model = nn.Sequential(nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), nn.Linear(8, 3))
    with pytest.raises(TypeError, match="reads without calling the layer"):
        inject(model, targets, 2)
    assert inject(model, "all-linear", 2) == ["1"]
    model.eval()(torch.randn(1, 5, 8))


def test_parameters_are_counted_as_the_paper_counts_them():
    """24 modules at rank 768 with sigma: 18,456 (Tables I and IV)."""
    with torch.device("meta"):
        width = nn.ModuleList(nn.Linear(768, 768) for _ in range(2))
    model = nn.ModuleList(copy.deepcopy(width) for _ in range(12)).to_empty(device="cpu")
    for parameter in model.parameters():
        nn.init.eye_(parameter) if parameter.ndim == 2 else nn.init.zeros_(parameter)
    inject(model, "all-linear", 768)
    count = trainable_parameters(model)
    assert count.adapter == 18_456
    assert str(count).startswith(
        "18,456 trainable parameters in 24 LoLDU layers = 24 x (768 + 1), 0.1302 % of 14,174,208"
    )


def test_heads_and_frozen_sigmas_are_told_apart(model):
    inject(model, ["query"], 4, train_sigma=False)
    model.classifier.requires_grad_(True)
    count = trainable_parameters(model)
    assert (count.layers, count.diagonal, count.sigma, count.adapter, count.other) == (2, 8, 0, 8, 27)
    assert count.total == sum(parameter.numel() for parameter in Model().parameters())
    assert "27 more outside them (heads)" in str(count)


@pytest.mark.parametrize("epsilon", [None, 0.1, 100.0])
def test_projection(model, epsilon):
    inject(model, ["query", "value"], 4)
    disturb(model)
    sigmas = [-0.5, 0.0, 0.7, 3.0]
    with torch.no_grad():
        for (_, layer), sigma in zip(lowrank_layers(model), sigmas, strict=True):
            layer.sigma.fill_(sigma)
    before = [layer.z.clone() for _, layer in lowrank_layers(model)]
    project_(model, epsilon)
    for (_, layer), z, sigma in zip(lowrank_layers(model), before, sigmas, strict=True):
        assert 0 < layer.sigma.item() <= 1
        assert layer.sigma.item() == pytest.approx(min(max(sigma, 0), 1))
        # The nearest point of the ball: the same direction, at most that long.
        length = z.norm().item()
        shrink = 1.0 if epsilon is None else min(1.0, epsilon / length)
        # The norm is a sum of r squares, formed on both sides; z is its start and an offset, which may cancel.
        size = layer.adapter.initial_diagonal.abs() + layer.offset.abs() + z.abs()
        assert_within(layer.z, z * shrink, 2 * gamma(layer.rank + 4, z.dtype) * size)


@pytest.mark.parametrize("epsilon", [0.0, -1.0, float("nan"), "1"])
def test_projection_onto_nothing(model, epsilon):
    inject(model, ["query"], 2)
    with pytest.raises((TypeError, ValueError), match="epsilon is .*; accepted: a positive finite number"):
        project_(model, epsilon)


def test_layers_print_their_options(model):
    inject(model, ["query"], 2)
    assert "rank=2, basis=ldu, pivoting=partial, core=diagonal, parametrization=diagonal" in repr(model)
    assert "alpha=2, init=regular_ldu, preserving=True, train_sigma=True" in repr(model)
    assert isinstance(model.blocks[0].query, LDULayer)
