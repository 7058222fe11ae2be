"""Groups of trained parameters, with a learning rate for each."""

import pytest
import torch
from peft import get_peft_model
from torch import nn

from lowrank_ldu.nn import inject, parameter_groups
from lowrank_ldu.peft import LolduConfig


def model_of(**options):
    model = nn.Sequential(nn.Linear(6, 6), nn.Linear(6, 2))
    inject(model, ["0"], 3, **options)
    model[1].requires_grad_(True)
    return model


def test_every_trained_parameter_is_in_one_group():
    model = model_of(core="dense", parametrization="gram")
    inject(model, ["1"], 2)
    groups = parameter_groups(model, other_lr=5e-4, weight_decay=0.1)
    assert {group["name"]: group["lr"] for group in groups} == {
        "unit coordinates": 2e-2,
        "raw coordinates": 3e-3,
        "scales": 3e-3,
    }
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    grouped = [parameter for group in groups for parameter in group["params"]]
    assert sorted(map(id, grouped)) == sorted(map(id, trained))
    assert all(group["weight_decay"] == 0 for group in groups)


def test_rates_and_decay_are_those_that_are_given():
    groups = {group["name"]: group for group in parameter_groups(model_of(), 1e-3, other_lr=5e-4, weight_decay=0.1)}
    assert groups["raw coordinates"]["lr"] == groups["scales"]["lr"] == 1e-3
    assert (groups["others"]["lr"], groups["others"]["weight_decay"]) == (5e-4, 0.1)
    torch.optim.AdamW(list(groups.values())).step()


def test_a_scale_that_is_not_trained_is_in_no_group():
    assert [group["name"] for group in parameter_groups(model_of(train_sigma=False))] == ["raw coordinates", "others"]


def test_adapters_under_peft_are_grouped():
    config = LolduConfig(r=2, target_modules=["0"], modules_to_save=["1"], parametrization="normalized")
    model = get_peft_model(nn.Sequential(nn.Linear(6, 6), nn.Linear(6, 2)), config)
    assert [group["name"] for group in parameter_groups(model)] == ["unit coordinates", "scales", "others"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"lr": 0}, "lr is 0; accepted: a positive finite number"),
        ({"other_lr": -1}, "other_lr is -1"),
        ({"weight_decay": 1}, "weight_decay is 1; accepted: a number from 0 to below 1"),
    ],
)
def test_what_is_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        parameter_groups(model_of(), **arguments)
    with pytest.raises(ValueError, match=r"the model \(Sequential\) trains no parameter"):
        parameter_groups(model_of().requires_grad_(False))
    with pytest.raises(ValueError, match=r"the model \(Linear\) has no LoLDU layer"):
        parameter_groups(nn.Linear(2, 2))
    with pytest.raises(TypeError, match="model is a list"):
        parameter_groups([nn.Linear(2, 2)])
