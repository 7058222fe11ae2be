import sys

import pytest
import torch

from lowrank_ldu.finetuning.digits.network import build_vision_transformer


def test_the_default_network_has_the_documented_size_and_output():
    model = build_vision_transformer()

    assert sum(parameter.numel() for parameter in model.parameters()) == 302_506
    assert model(torch.zeros(3, 1, 8, 8)).logits.shape == (3, 10)


def test_weights_depend_on_the_seed_alone_and_the_global_generator_is_left_alone(small):
    torch.manual_seed(7)
    expected_draw = torch.rand(3)
    torch.manual_seed(7)
    first = build_vision_transformer(small, seed=1).state_dict()
    assert torch.equal(torch.rand(3), expected_draw)

    again = build_vision_transformer(small, seed=1).state_dict()
    other = build_vision_transformer(small, seed=2).state_dict()

    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["classifier.weight"], other["classifier.weight"])


def test_a_missing_package_is_reported_with_the_extra_that_brings_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "transformers", None)

    with pytest.raises(ImportError, match=r"transformers .*pip install 'lowrank-ldu\[finetune\]'"):
        build_vision_transformer()
