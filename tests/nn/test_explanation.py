"""explain_plan: what layers really take, reasons in words, and nothing changed by asking."""

import pytest
import torch
from peft import get_peft_model
from torch import nn

from lowrank_ldu.kernels import PLANS, Problem, choose_plan, plan_costs
from lowrank_ldu.nn import LayerPlan, LDULayer, explain_plan, inject, merge, plan_timing
from lowrank_ldu.nn.calls import never_called
from lowrank_ldu.nn.plan import planned
from lowrank_ldu.peft import LolduConfig


class Branches(nn.Module):
    """Two layers of one shape, a convolution, dropout, a batch norm, and a layer that is not called."""

    def __init__(self):
        super().__init__()
        self.first, self.second, self.unused = nn.Linear(12, 12), nn.Linear(12, 12), nn.Linear(12, 12)
        self.convolution = nn.Conv1d(12, 12, 1)
        self.norm, self.dropout = nn.BatchNorm1d(12), nn.Dropout(0.5)

    def forward(self, x, scale=1.0):
        x = self.norm(self.dropout(self.first(x))) * scale
        return self.convolution(self.second(x)[..., None])


@pytest.fixture
def model():
    model = Branches()
    inject(model, ["first", "second", "unused", "convolution"], rank=4)
    return model


def test_plans_are_those_that_layers_take(model):
    explained = explain_plan(model, torch.randn(1024, 12))
    assert [row.layer for row in explained] == ["first", "second", "unused", "convolution"]
    first = explained["first"]
    assert first.plan == planned(model.first, torch.randn(1024, 12))
    assert first.problem.amplification >= 1
    assert first.problem._replace(amplification=None) == Problem(
        1024, 12, 12, 4, torch.float32, torch.device("cpu"), False, True, upper=True, packing=True, columns=True
    )
    assert explained["second"].problem.x_gradient  # of what the first layer trains
    assert first.estimated_ms[first.plan] == pytest.approx(1e3 * choose_plan(first.problem).costs[first.plan])
    assert set(first.estimated_ms) | set(first.reasons) >= set(PLANS) - {"auto"}
    assert "factors of rank 4 do not hold the weight; accepted: full rank, 12 here" in first.reasons["packed"]


def test_layers_without_a_plan_say_why(model):
    explained = explain_plan(model, torch.randn(30, 12))
    assert (explained["unused"].plan, explained["unused"].note) == (
        "",
        "the model did not call the layer for this input",
    )
    assert explained["convolution"].plan == "reference"
    assert "the layer is a Conv1d, and fused products are of linear layers" in explained["convolution"].note
    merge(model)
    assert "merged" in explain_plan(model, torch.randn(30, 12))["first"].note


def test_nothing_is_changed_by_asking(model):
    model.first.plan = "triton"  # cannot run here, and is only asked about
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    state = torch.get_rng_state()
    explained = explain_plan(model, torch.randn(30, 12, generator=torch.Generator().manual_seed(0)), measure=True)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())
    assert (model.first.plan, model.second.plan, explained["first"].asked) == ("triton", "auto", "triton")
    assert "the layer is set to 'triton'" in str(explained)
    assert not model.first._forward_hooks
    assert not model.first._forward_pre_hooks
    assert model.norm.training
    assert never_called(model) == []  # the model has not run
    model.first.plan = "auto"
    model(torch.randn(30, 12))
    assert never_called(model) == ["unused"]


def test_hooks_go_when_the_model_fails(model):
    with pytest.raises(ValueError, match="x has shape"):
        explain_plan(model, torch.randn(30, 5))
    assert not model.first._forward_hooks
    assert not model.first._forward_pre_hooks
    assert model.norm.training


def test_modes_of_the_caller(model):
    with torch.no_grad():
        problem = explain_plan(model, torch.randn(30, 12))["second"].problem
    assert not problem.x_gradient
    assert not problem.delta_gradient
    with torch.autocast("cpu", torch.bfloat16):
        found = explain_plan(model, torch.randn(30, 12), measure=True)["second"]
    assert found.problem.dtype == torch.bfloat16
    assert found.measured_ms


@pytest.mark.parametrize(
    "given", [lambda x: {"x": x, "scale": 2.0}, lambda x: (x, 2.0), lambda x: [x]], ids=["mapping", "tuple", "list"]
)
def test_inputs(model, given):
    assert explain_plan(model, given(torch.randn(30, 12)))["first"].problem.tokens == 30


def test_measured_times(monkeypatch):
    monkeypatch.setattr(plan_timing, "_SECONDS", 0.0)
    layer = LDULayer(nn.Linear(12, 12))
    explained = explain_plan(layer, torch.randn(30, 12, requires_grad=True), measure=True)
    (row,) = explained
    assert set(row.measured_ms) >= {"reference", "factored", "hybrid", "materialized", "packed"}
    assert not set(row.measured_ms) & {"auto", "triton"}  # interpreted, triton would take minutes
    assert all(each > 0 for each in row.measured_ms.values())
    assert layer.plan == "auto"


def test_layers_of_one_problem_are_measured_once(model, monkeypatch):
    asked = []
    monkeypatch.setattr(
        "lowrank_ldu.nn.explanation.plan_seconds", lambda *arguments: asked.append(arguments) or {"factored": 1.0}
    )
    model.first, model.second = (LDULayer(nn.Linear(12, 12), rank=4) for _ in range(2))
    explained = explain_plan(model, torch.randn(30, 12, requires_grad=True), measure=True)
    assert len(asked) == 1
    assert explained["second"].measured_ms == {"factored": 1000.0}


def test_a_table_to_read(model):
    explained = explain_plan(model, torch.randn(30, 12, requires_grad=True))
    text = str(explained)
    assert "first and 1 more: " in text
    assert "12 x 12, r = 4, T = 30, float32 on cpu; forward and backward, gradients of x and the core" in text
    assert f"* {explained['first'].plan}" in text
    assert max(map(len, repr(explained).splitlines())) < 100
    assert str(explained["first"]).startswith("first: ")


def test_rows_and_frame(model):
    explained = explain_plan(model, torch.randn(30, 12))
    rows = explained.to_rows()
    assert len(rows) == 4 * (len(PLANS) - 1)
    frame = explained.to_frame()
    assert list(frame[frame.taken].layer) == ["first", "second", "convolution"]


def test_on_a_peft_model():
    model = get_peft_model(Branches(), LolduConfig(r=4, target_modules=["first", "second"]))
    explained = explain_plan(model, torch.randn(30, 12))
    row = explained["base_model.model.first"]
    assert row.plan in PLANS
    assert row.problem.rank == 4
    with model.disable_adapter():
        assert "disabled" in explain_plan(model, torch.randn(30, 12))["base_model.model.first"].note
    rows = explain_plan(model, {"x": torch.randn(30, 12)}, measure=True)["base_model.model.second"].measured_ms
    assert set(rows) >= {"reference", "factored", "hybrid", "materialized"}


def test_a_compiled_model(model):
    compiled = torch.compile(model, backend="eager")
    assert explain_plan(compiled, torch.randn(30, 12))[0].plan in PLANS


def test_refusals(model):
    with pytest.raises(TypeError, match="model is a str; accepted: a torch.nn.Module"):
        explain_plan("model", torch.ones(1))
    with pytest.raises(TypeError, match="x is a int; accepted: a tensor, a mapping"):
        explain_plan(model, 3)
    with pytest.raises(ValueError, match="has no LoLDU layer; accepted: one that inject or PEFT"):
        explain_plan(nn.Linear(2, 2), torch.ones(1, 2))
    with pytest.raises(KeyError, match="layer is 'third'; accepted: 'first', 'second'"):
        explain_plan(model, torch.randn(30, 12))["third"]
    assert isinstance(explain_plan(model, torch.randn(30, 12))[0], LayerPlan)


def test_the_name_of_a_device_is_enough():
    named = Problem(8, 4, 4, 2, torch.float32, "cpu")
    assert plan_costs(named) == plan_costs(named._replace(device=torch.device("cpu")))
    assert choose_plan(named).plan == choose_plan(named._replace(device=torch.device("cpu"))).plan


@pytest.mark.parametrize("core", ["diagonal", "dense"])
def test_few_rows_are_the_reason_why_nothing_is_gathered(core):
    layer = LDULayer(nn.Linear(32, 32), rank=4, core=core)
    (few,), (many,) = (explain_plan(layer, torch.ones(rows, 32)) for rows in (1023, 1024))
    assert few.reasons["skeleton"] == "1023 rows, and 'auto' gathers from 1024 on; set_plan does for any"
    assert "skeleton" in many.estimated_ms
    large = LDULayer(nn.Linear(32, 32), rank=20, core=core)
    assert explain_plan(large, torch.ones(8, 32))[0].reasons["skeleton"].startswith("there is no skeleton")
