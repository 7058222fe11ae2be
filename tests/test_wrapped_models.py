"""Adapted models where a model may be: traced, exported, wrapped, offloaded, moved."""

import copy

import pytest
import torch
from peft import get_peft_model
from torch import nn

from lowrank_ldu.nn import inject
from lowrank_ldu.peft import LolduConfig

TARGETS = ["0", "2.0", "3"]
x = torch.randn(5, 8, generator=torch.Generator().manual_seed(0))


def base():
    torch.manual_seed(0)
    block = nn.Sequential(nn.Linear(8, 8), nn.Tanh())
    return nn.Sequential(nn.Linear(8, 8), nn.Tanh(), block, nn.Linear(8, 3))


@torch.no_grad()
def trained(model):
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.add_(0.2 * torch.randn_like(parameter))
    return model.eval()


def injected(model=None, **options):
    model = base() if model is None else model
    inject(model, TARGETS, rank=3, **options)
    return trained(model)


def with_peft(model=None, **options):
    config = LolduConfig(r=3, target_modules=TARGETS, **options)
    return trained(get_peft_model(base() if model is None else model, config))


BOTH = pytest.mark.parametrize("make", [injected, with_peft])


def inner(model):
    """The model that the layers are in: torch.fx does not trace PEFT's own around it."""
    return model.base_model.model if hasattr(model, "peft_config") else model


def first(model):
    return inner(model)[0]


@BOTH
def test_fx_traces_a_layer_as_one_node(make):
    model = make()
    graph = torch.fx.symbolic_trace(inner(model))
    assert next(node.target for node in graph.graph.nodes if node.op == "call_module") == "0"
    assert graph.get_submodule("0") is first(model)
    torch.testing.assert_close(graph(x), model(x))
    with torch.no_grad():
        next(parameter for parameter in model.parameters() if parameter.requires_grad).mul_(2)
    torch.testing.assert_close(graph(x), model(x))
    with pytest.raises(RuntimeError, match="torch.fx traces a .* by itself, .*; accepted: a model with the"):
        torch.fx.symbolic_trace(first(model))


@BOTH
def test_exports_for_any_number_of_rows(make):
    model = make()
    program = torch.export.export(inner(model), (x,), dynamic_shapes=({0: torch.export.Dim("rows")},))
    rows = torch.randn(9, 8)
    torch.testing.assert_close(program.module()(rows), model(rows))


@BOTH
@pytest.mark.parametrize("options", [{}, {"basis": "svd"}])
@pytest.mark.parametrize("assign", [True, False])
def test_comes_back_from_the_meta_device(make, options, assign):
    model = make(**options)
    moved = copy.deepcopy(model).to("meta")
    assert moved(x.to("meta")).shape == (5, 3)
    if not assign:
        moved.to_empty(device="cpu")
        for buffer in moved.buffers():
            buffer.zero_()
    moved.load_state_dict(model.state_dict(), assign=assign)
    torch.testing.assert_close(moved(x), model(x))
