"""Layers that gather their projection: what happens when their weight changes."""

import pytest
import torch
from torch import nn

from lowrank_ldu.nn import LDULayer, set_plan
from lowrank_ldu.nn.forward import LEAST_GATHERED


def layer_of(dtype, **options):
    torch.manual_seed(0)
    layer = LDULayer(nn.Linear(96, 80).to(dtype), rank=8, pivoting="complete", **options)
    with torch.no_grad():
        layer.offset.normal_(std=0.3)
    return layer


def swap_rows(weight, rows, _):
    weight[rows[:2]] = weight[rows[:2].flip(0)].clone()


def permute_in_a_row(weight, rows, _):
    weight[rows[0]] = weight[rows[0]].flip(0).clone()


def negate(weight, *_):
    weight.neg_()


def flip_two_signs(weight, rows, _):
    weight[rows[0], 3] *= -1
    weight[rows[1], 5] *= -1


def permute_other_columns(weight, _, columns):
    others = torch.tensor([j for j in range(weight.shape[1]) if j not in columns.tolist()])
    weight[:, others] = weight[:, others.flip(0)].clone()


def swap_columns(weight, _, columns):
    weight[:, columns[:2]] = weight[:, columns[:2].flip(0)].clone()


CHANGES = [swap_rows, permute_in_a_row, negate, flip_two_signs, permute_other_columns, swap_columns]


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("plan", ["auto", "hybrid"])
@pytest.mark.parametrize("by_data", [True, False], ids=["data", "in place"])
def test_a_changed_weight_is_never_gathered_from(change, dtype, plan, by_data):
    layer = layer_of(dtype)
    x = torch.randn(LEAST_GATHERED, 96, dtype=dtype, requires_grad=True)
    set_plan(layer, plan)
    layer(x)
    assert layer.factors.skeleton(layer.base_layer.weight) is not None
    update = layer.delta_weight().detach()
    weight = layer.base_layer.weight
    with torch.no_grad():
        change(weight.data if by_data else weight, layer.factors.pivot_rows, layer.factors.pivot_columns)
    y = layer(x)
    expected = nn.functional.linear(x, weight + update, layer.base_layer.bias)
    # Sums of 96 products in the dtype, and the update's own rounding.
    allowed = 1e3 * torch.finfo(dtype).eps * float(expected.detach().norm())
    assert float((y - expected).detach().norm()) <= allowed
    gradient = torch.randn_like(y)
    ours, offset = torch.autograd.grad(y, [x, layer.offset], gradient)
    theirs = gradient @ (weight + update)
    assert float((ours - theirs).norm()) <= 1e3 * torch.finfo(dtype).eps * float(theirs.norm())
    set_plan(layer, "reference")
    reference = torch.autograd.grad(layer(x), layer.offset, gradient)[0]
    assert float((offset - reference).norm()) <= 1e4 * torch.finfo(dtype).eps * float(reference.norm())


def test_a_skeleton_that_is_asked_for_is_refused_on_a_changed_weight():
    layer = layer_of(torch.float32)
    x = torch.randn(64, 96)
    set_plan(layer, "skeleton")
    layer(x)
    with torch.no_grad():
        swap_rows(layer.base_layer.weight, layer.factors.pivot_rows, None)
    with pytest.raises(RuntimeError, match="plan 'skeleton' cannot run here: there is no skeleton of this weight"):
        layer(x)


def test_a_compiled_layer_sees_a_changed_weight():
    layer = layer_of(torch.float32)
    x = torch.randn(64, 96)
    layer(x)
    compiled = torch.compile(layer, backend="aot_eager", fullgraph=True)
    compiled(x)
    with torch.no_grad():
        layer.base_layer.weight.copy_(torch.randn(80, 96) / 10)
    torch.testing.assert_close(compiled(x), layer(x))


@pytest.mark.parametrize("plan", ["auto", "hybrid", "skeleton"])
@pytest.mark.parametrize(("dtype", "allowed"), [(torch.float32, 1e-3), (torch.bfloat16, 0.1), (torch.float64, 1e-7)])
@pytest.mark.parametrize("size", [0.0, 1.0, 1e2, 1e5, 1e9])
def test_a_large_bias_does_not_take_the_digits(plan, dtype, allowed, size):
    layer = layer_of(torch.float64, core="dense", parametrization="gram")
    with torch.no_grad():
        layer.base_layer.bias.normal_(std=size)
    layer = LDULayer(layer.base_layer.to(dtype), rank=8, core="dense", parametrization="gram")
    with torch.no_grad():
        layer.offset.normal_(std=0.1)
    x, g = (torch.randn(LEAST_GATHERED, n).to(dtype) for n in (96, 80))

    def gradient(plan):
        set_plan(layer, plan)
        return torch.autograd.grad(layer(x), layer.offset, g)[0]

    exact = gradient("reference")
    if plan == "skeleton" and size * torch.finfo(dtype).eps ** 0.5 > 5:
        with pytest.raises(RuntimeError, match="rounding would be enlarged"):
            gradient(plan)
        return
    found = gradient(plan)
    # Half of the digits, as the planner promises.
    assert float((found - exact).norm()) <= allowed * float(exact.norm())
