"""The constraints of section III-D with any optimiser."""

import copy
import pickle

import pytest
import torch
from peft import get_peft_model
from torch import nn

from lowrank_ldu.nn import LoLDULayer, ProjectedOptimizer, inject, lowrank_layers
from lowrank_ldu.peft import LolduConfig


def model():
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(12, 10), nn.ReLU(), nn.Linear(10, 6))
    inject(network, "all-linear", 5)
    return network


def numbers(network):
    return [parameter for parameter in network.parameters() if parameter.requires_grad]


def step(network, optimizer):
    def closure():
        optimizer.zero_grad()
        loss = network(torch.ones(4, 12)).square().sum()
        loss.backward()
        return loss

    if isinstance(optimizer.optimizer if hasattr(optimizer, "optimizer") else optimizer, torch.optim.LBFGS):
        return optimizer.step(closure)
    closure()
    return optimizer.step()


def is_inside(network, epsilon):
    return all(layer.z.norm() <= epsilon + 1e-5 and 0 < layer.sigma <= 1 for _, layer in lowrank_layers(network))


@pytest.mark.parametrize("kind", [torch.optim.SGD, torch.optim.AdamW, torch.optim.RMSprop, torch.optim.LBFGS])
def test_any_optimiser_is_projected_until_it_is_not(kind):
    network = model()
    rate = 0.01 if kind is torch.optim.LBFGS else 3.0  # its directions would reach infinity
    optimizer = ProjectedOptimizer(kind(numbers(network), lr=rate), network, epsilon=0.3)
    for _ in range(3):
        step(network, optimizer)
        assert is_inside(network, 0.3)
    optimizer.remove()
    for _ in range(3):
        step(network, optimizer)
    if kind is not torch.optim.LBFGS:
        assert not is_inside(network, 0.3)


def test_a_scheduler_and_state_dicts():
    network = model()
    optimizer = ProjectedOptimizer(torch.optim.SGD(numbers(network), lr=1.0, momentum=0.9), network, epsilon=0.3)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1, gamma=0.1)
    step(network, optimizer)
    scheduler.step()
    assert optimizer.param_groups[0]["lr"] == pytest.approx(0.1)
    state = copy.deepcopy(optimizer.state_dict())
    plain = torch.optim.SGD(numbers(model()), lr=1.0, momentum=0.9)
    plain.load_state_dict(state)
    assert plain.param_groups[0]["lr"] == pytest.approx(0.1)
    optimizer.load_state_dict(state)
    step(network, optimizer)
    assert is_inside(network, 0.3)


def test_a_hidden_step_of_the_wrapped_optimiser_counts():
    """GradScaler and accelerate call it."""
    network = model()
    inner = torch.optim.SGD(numbers(network), lr=3.0)
    ProjectedOptimizer(inner, network, epsilon=0.3)
    step(network, inner)
    assert is_inside(network, 0.3)


def test_models_of_peft_and_frozen_adapters():
    torch.manual_seed(0)
    network = get_peft_model(nn.Sequential(nn.Linear(12, 10)), LolduConfig(r=5, target_modules=["0"]))
    network.add_adapter("frozen", LolduConfig(r=5, target_modules=["0"], init_weights=False))
    layer = network.base_model.model[0]
    before = layer.adapter("frozen").offset.detach().clone()
    optimizer = ProjectedOptimizer(torch.optim.SGD(numbers(network), lr=3.0), network, epsilon=0.3)
    network(torch.ones(4, 12)).square().sum().backward()
    optimizer.step()
    _, adapter, factors = layer.diagonal("default")
    assert adapter.z(factors).norm() <= 0.3 + 1e-5
    assert torch.equal(layer.adapter("frozen").offset, before)


def test_it_is_pickled_with_its_model():
    network = model()
    optimizer = ProjectedOptimizer(torch.optim.SGD(numbers(network), lr=3.0), network, epsilon=0.3)
    again, theirs = pickle.loads(pickle.dumps((optimizer, network)))  # noqa: S301
    step(theirs, again)
    assert is_inside(theirs, 0.3)


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (
            lambda layer: ProjectedOptimizer(layer, layer),
            TypeError,
            "optimizer is a LoLDULayer; accepted: a torch.optim",
        ),
        (
            lambda layer: ProjectedOptimizer(torch.optim.SGD(layer.adapter.parameters()), layer, epsilon=0),
            ValueError,
            "epsilon is 0; accepted: a positive",
        ),
    ],
)
def test_bad_arguments(make, error, message):
    with pytest.raises(error, match=message):
        make(LoLDULayer(nn.Linear(4, 4), 2))
