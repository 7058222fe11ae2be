"""Weights that share their memory without being one parameter: merging would change both."""

import pytest
import torch
from peft import get_peft_model
from torch import nn

from lowrank_ldu.adapters.ties import tied_tensors
from lowrank_ldu.nn import inject, merge, unload
from lowrank_ldu.nn.memory import share_memory
from lowrank_ldu.peft import LolduConfig

TIES = {
    "same": lambda flat: flat[:8],
    "transposed": lambda flat: flat[:8].t(),
    "overlapping": lambda flat: flat[4:12],
    "buffer": lambda flat: flat[:8],
    "disjoint": lambda flat: flat[8:],
    "clone": lambda flat: flat[:8].clone(),
}


def two_layers(tie):
    flat = torch.randn(16, 8)
    model = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8))
    model[0].weight = nn.Parameter(flat[:8])
    if tie == "buffer":
        model[1].register_buffer("copy", TIES[tie](flat))
    else:
        model[1].weight = nn.Parameter(TIES[tie](flat))
    return model


@pytest.mark.parametrize("tie", ["same", "transposed", "overlapping", "buffer"])
def test_memory_of_two_modules_is_not_merged_into(tie):
    model = two_layers(tie)
    inject(model, ["0"], 3)
    for change in (merge, unload):
        with pytest.raises(RuntimeError, match="the weight of layer '0' is tied to '1', which merging would change"):
            change(model)
    with pytest.raises(RuntimeError, match="the weight is tied to that of a Linear"):
        model[0].merge()
    with pytest.raises(ValueError, match="tied to"):
        get_peft_model(two_layers(tie), LolduConfig(r=3, target_modules=["0"])).merge_adapter()


@pytest.mark.parametrize("tie", ["disjoint", "clone"])
def test_views_that_do_not_overlap_are_merged(tie):
    model = two_layers(tie)
    inject(model, ["0"], 3)
    with torch.no_grad():
        model[0].offset.add_(0.3)
    x = torch.randn(5, 8)
    before, other = model(x), model[1].weight.clone()
    merge(model)
    torch.testing.assert_close(model(x), before)
    assert torch.equal(model[1].weight, other)


def test_tied_tensors_are_found_by_memory():
    assert tied_tensors(two_layers("same"), ["0.weight", "0.bias"]) == {"0.weight": ["1.weight"]}
    assert tied_tensors(two_layers("disjoint"), ["0.weight"]) == {}


def test_tensors_without_memory_are_compared_by_identity():
    a, b = torch.empty(4, device="meta"), torch.empty(4, device="meta")
    assert share_memory(a, a)
    assert not share_memory(a, b)
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4)).to("meta")
    assert tied_tensors(model, ["0.weight"]) == {}
    model[1].weight = model[0].weight
    assert tied_tensors(model, ["0.weight"]) == {"0.weight": ["1.weight"]}
