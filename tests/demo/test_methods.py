import copy

import pytest
import torch
from torch import nn

from lowrank_ldu.demo import (
    ComparisonSettings,
    FullFineTuning,
    LinearProbe,
    LoLDUMethod,
    LoRAMethod,
    PiSSAMethod,
    Pretrained,
    TrainingSettings,
    default_methods,
    fine_tune,
    load_digits_split,
)
from lowrank_ldu.demo.methods import ChosenPivotsMethod, FittedBasisMethod, query_and_value
from lowrank_ldu.finetuning import Choice, load_recipe
from lowrank_ldu.finetuning.configuration import configure

# Of the `small` network: 2 layers with a query and a value each, width 16, 10 classes.
PROJECTIONS, LINEAR, WIDTH, HEAD = 4, 12, 16, 16 * 10 + 10
SPLIT = load_digits_split()
IMAGES = SPLIT.training
METHODS = [
    (LinearProbe(1e-2), 0),
    (LoLDUMethod(1e-2, rank=4), PROJECTIONS * (4 + 1)),
    (LoLDUMethod(1e-2, rank=16), PROJECTIONS * (16 + 1)),
    (ChosenPivotsMethod(1e-2, rank=3), PROJECTIONS * 9),
    (FittedBasisMethod(1e-2, rank=5), LINEAR * 5),
    (LoRAMethod(1e-2, rank=2), PROJECTIONS * 2 * (WIDTH + WIDTH)),
    (PiSSAMethod(1e-2, rank=2), PROJECTIONS * 2 * (WIDTH + WIDTH)),
]
FAITHFUL = [method for method, _ in METHODS if not isinstance(method, PiSSAMethod)]


def by_name(value):
    return getattr(value, "name", None)


@pytest.fixture
def pretrained(network):
    return Pretrained(network, upright_accuracy=0.0, shifted_accuracy=0.0, seconds=0.0)


@pytest.mark.parametrize(("method", "adapter"), METHODS, ids=by_name)
def test_trained_parameters_are_the_adapters_and_the_heads_in_the_papers_count(method, adapter, network):
    prepared = method.prepare(network, IMAGES, seed=0)

    assert prepared.adapter_parameters == adapter
    assert prepared.total_parameters == adapter + HEAD


def test_full_fine_tuning_trains_every_weight(network):
    prepared = FullFineTuning(1e-3).prepare(network, IMAGES, seed=0)

    assert prepared.total_parameters == sum(parameter.numel() for parameter in network.parameters())
    assert prepared.adapter_parameters == prepared.total_parameters - HEAD


@pytest.mark.parametrize(
    ("method", "leaves"),
    [
        (LinearProbe(1e-2), set()),
        (LoLDUMethod(1e-2, rank=4), {"adapter.offset", "adapter.sigma"}),
        (ChosenPivotsMethod(1e-2, rank=3), {"adapter.offset"}),
        (LoRAMethod(1e-2, rank=2), {"lora_A.default.weight", "lora_B.default.weight"}),
        (PiSSAMethod(1e-2, rank=2), {"lora_A.default.weight", "lora_B.default.weight"}),
    ],
    ids=by_name,
)
def test_the_trained_names_are_those_of_the_method_in_query_and_value_and_of_the_head(method, leaves, network):
    targets = query_and_value(network)
    layers = [name for name, _ in network.named_modules() if name.rpartition(".")[2] in targets]
    assert len(layers) == PROJECTIONS

    trained = set(method.prepare(network, IMAGES, seed=0).trainable())

    expected = {f"{layer}.{leaf}" for layer in layers for leaf in leaves}
    assert trained == expected | {"classifier.weight", "classifier.bias"}


@pytest.mark.parametrize("method", FAITHFUL, ids=by_name)
def test_weights_of_the_base_are_bit_for_bit_the_same_after_training(method, pretrained):
    split = SPLIT
    before = copy.deepcopy(pretrained.model.state_dict())

    prepared, _ = fine_tune(
        pretrained, method, split.training, split.validation, seed=0, settings=TrainingSettings(epochs=1)
    )

    after = pretrained.model.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)
    # In the trained copy too, whatever the wrapped layers are called there: every base weight but the head's is found.
    frozen = [parameter for parameter in prepared.model.parameters() if not parameter.requires_grad]
    originals = [value for name, value in before.items() if not name.startswith("classifier")]
    same_shape = {shape: [p for p in frozen if p.shape == shape] for shape in {value.shape for value in originals}}
    assert all(any(torch.equal(value, p) for p in same_shape[value.shape]) for value in originals)
    assert not torch.equal(prepared.model.get_submodule("classifier").weight, before["classifier.weight"])


@pytest.mark.parametrize("method", [method for method, _ in METHODS], ids=by_name)
def test_preparing_keeps_the_function(method, network):
    pixels = SPLIT.test.pixels[:32]
    network.eval()
    with torch.no_grad():
        expected = network(pixels).logits
        actual = method.prepare(network, IMAGES, seed=0).model.eval()(pixels).logits

    if isinstance(method, PiSSAMethod):  # its frozen weight is a rounded difference
        torch.testing.assert_close(actual, expected)
    else:
        assert torch.equal(actual, expected)


def test_sigma_stays_in_its_range_during_training(pretrained):
    split = SPLIT

    prepared, _ = fine_tune(
        pretrained,
        LoLDUMethod(0.5, rank=4),
        split.training,
        split.validation,
        seed=0,
        settings=TrainingSettings(epochs=2),
    )

    sigmas = [value for name, value in prepared.trainable().items() if name.endswith("sigma")]
    assert len(sigmas) == PROJECTIONS
    assert all(0.0 < sigma.item() <= 1.0 for sigma in sigmas)
    assert any(sigma.item() < 1.0 for sigma in sigmas)


def test_only_matrices_decay(network):
    decaying, steady = FullFineTuning(1e-3).prepare(network, IMAGES, seed=0).parameter_groups(0.1)

    assert decaying["weight_decay"] == 0.1
    assert steady["weight_decay"] == 0.0
    assert all(parameter.ndim > 1 for parameter in decaying["params"])
    assert all(parameter.ndim == 1 for parameter in steady["params"])
    assert len(decaying["params"]) + len(steady["params"]) == len(list(network.parameters()))


def test_cores_do_not_decay(network):
    decaying, steady = ChosenPivotsMethod(1e-2, rank=3).prepare(network, IMAGES, seed=0).parameter_groups(0.1)

    assert [tuple(parameter.shape) for parameter in decaying["params"]] == [(10, WIDTH)]
    assert sum(parameter.ndim == 3 for parameter in steady["params"]) == PROJECTIONS


def test_random_initialization_follows_the_seed_and_leaves_the_global_generator_alone(network):
    def first_lora_matrix(seed: int) -> torch.Tensor:
        trainable = LoRAMethod(1e-2, rank=2).prepare(copy.deepcopy(network), IMAGES, seed=seed).trainable()
        return next(value.detach() for name, value in trainable.items() if "lora_A" in name)

    torch.manual_seed(7)
    expected_draw = torch.rand(3)
    torch.manual_seed(7)
    first = first_lora_matrix(0)

    assert torch.equal(torch.rand(3), expected_draw)
    assert torch.equal(first, first_lora_matrix(0))
    assert not torch.equal(first, first_lora_matrix(1))


def test_a_model_without_query_and_value_is_refused():
    with pytest.raises(ValueError, match="no query or value projection; accepted: "):
        query_and_value(nn.Sequential(nn.Linear(2, 2)))


def test_names_of_the_default_methods_differ():
    names = [method.name for method in default_methods()]

    assert len(set(names)) == len(names)


# The recipe's name of each method, and its rank's.
RECIPE_METHODS = {
    "LinearProbe": ("head", None),
    "LoLDUMethod": ("loldu", "r"),
    "FittedBasisMethod": ("ldu-basis", "fit_rank"),
    "ChosenPivotsMethod": ("ldu-pivots", "fit_rank"),
    "LoRAMethod": ("lora", "r"),
    "PiSSAMethod": ("pissa", "r"),
    "FullFineTuning": ("full", None),
}


def test_the_recipe_of_digits_has_the_methods_and_the_budget_of_the_comparison():
    budget = ComparisonSettings().fine_tuning
    # Of two ranks of a method the later one counts.
    for method in default_methods():
        name, rank = RECIPE_METHODS[type(method).__name__]
        config = configure(load_recipe("digits"), "digits", Choice(method=name), seed=0)
        training = config.training
        assert training["learning_rate"] == method.learning_rate
        assert (training["num_train_epochs"], training["per_device_train_batch_size"]) == (
            budget.epochs,
            budget.batch_size,
        )
        assert (training["weight_decay"], training["warmup_ratio"]) == (budget.weight_decay, budget.warmup_ratio)
        if rank is not None and method.name != "LoLDU r=32":
            assert config.method_options[rank] == method.rank
