"""Layers compute by the plan that is set, and pass by nothing of their base layer."""

import copy
import ctypes

import pytest
import torch
from half_precision import assert_as_near
from hypothesis import given, settings
from hypothesis import strategies as st
from layer_problems import TORCH_PLANS
from torch import nn
from torch.fx.experimental.proxy_tensor import make_fx
from torch.nn.utils import parametrizations

from lowrank_ldu.nn import LDULayer, inject, set_plan
from lowrank_ldu.nn.plan import planned
from lowrank_ldu.nn.update import updated_output


def layer(m=12, n=10, rank=4, dtype=torch.float32, **options):
    made = LDULayer(nn.Linear(n, m).to(dtype), rank, **options)
    made.adapter.set_z(made.z * (1 + 0.3 * torch.randn(rank).to(made.z)), made.factors)
    with torch.no_grad():
        made.sigma.mul_(1.1)
    return made


def unfused(module, x):
    return updated_output(module.base_layer, module.kind, x, module.base_layer(x), module.factors, module.delta)


def gradients(function, module, x, gradient):
    x = x.clone().requires_grad_()
    y = function(x)
    return y, *torch.autograd.grad(y, [x, module.offset, module.sigma], gradient)


def joined(results):
    """The output, the gradient of x, and those of the adapter as one: sigma's is a single number."""
    y, dx, *adapter = results
    return y, dx, torch.cat([gradient.flatten() for gradient in adapter])


@settings(max_examples=40, deadline=None)
@given(
    m=st.integers(1, 30),
    n=st.integers(1, 30),
    rank=st.integers(1, 30),
    tokens=st.integers(0, 12),
    plan=st.sampled_from(TORCH_PLANS),
    pivoting=st.sampled_from(["partial", "complete", "rook"]),
    parametrization=st.sampled_from(["diagonal", "normalized", "gram"]),
    seed=st.integers(0, 99),
)
def test_every_plan_is_the_base_plus_the_update(m, n, rank, tokens, plan, pivoting, parametrization, seed):
    torch.manual_seed(seed)
    module = layer(m, n, min(m, n, rank), torch.float64, pivoting=pivoting, parametrization=parametrization)
    x, gradient = torch.randn(tokens, n, dtype=torch.float64), torch.randn(tokens, m, dtype=torch.float64)
    expected = gradients(lambda x: unfused(module, x), module, x, gradient)
    set_plan(module, plan)
    results = gradients(module, module, x, gradient)
    for value, wanted in zip(results, expected, strict=True):
        scale = max(float(wanted.detach().abs().max()) if wanted.numel() else 1.0, 1.0)
        torch.testing.assert_close(value, wanted, rtol=0, atol=1e-10 * scale)


def test_packed_where_the_diagonal_is_all_of_the_weight():
    module = layer(20, 16, 16)
    x, gradient = torch.randn(50, 16), torch.randn(50, 20)
    wide = copy.deepcopy(module).double()
    oracles = joined(gradients(lambda x: unfused(wide, x), wide, x.double(), gradient.double()))
    plain = joined(gradients(lambda x: unfused(module, x), module, x, gradient))
    set_plan(module, "packed")
    # A packed product sums up as many terms as those of the base and of the update together.
    for value, near, oracle in zip(joined(gradients(module, module, x, gradient)), plain, oracles, strict=True):
        assert_as_near(value, oracle, near, oracle)


def test_packed_follows_the_weight():
    module = layer(16, 16, 16)
    set_plan(module, "packed")
    x = torch.randn(5, 16)
    module(x)
    with torch.no_grad():
        module.base_layer.weight.add_(1.0)
    with pytest.raises(RuntimeError, match="there is no packing of this weight"):
        module(x)  # the factors are another weight's


def write_data(weight):
    weight.data[3, 5] += 1.0


def write_numpy(weight):
    weight.detach().numpy()[7, 2] -= 1.0


def write_dlpack(weight):
    torch.utils.dlpack.from_dlpack(torch.utils.dlpack.to_dlpack(weight.detach()))[0, 9] = 3.0


def write_address(weight):
    ctypes.c_float.from_address(weight.data_ptr() + 4 * 37).value = 2.5


@pytest.mark.parametrize("write", [write_data, write_numpy, write_dlpack, write_address])
def test_packed_sees_every_entry(write):
    module = layer(16, 16, 16)
    set_plan(module, "packed")
    x = torch.randn(5, 16)
    module(x)
    write(module.base_layer.weight)
    with pytest.raises(RuntimeError, match="there is no packing of this weight"):
        module(x)


def write_replaced(weight):
    weight.data = weight.detach() + 1.0


GRAPHS = {
    "eager": lambda module, x: torch.compile(module, fullgraph=True, backend="eager"),
    "aot": lambda module, x: torch.compile(module, fullgraph=True, backend="aot_eager"),
    "export": lambda module, x: torch.export.export(module, (x,)).module(),
    "make_fx": lambda module, x: make_fx(module)(x),
}


@torch.no_grad()
@pytest.mark.parametrize("graph", GRAPHS)
@pytest.mark.parametrize("write", [write_data, write_numpy, write_dlpack, write_address, write_replaced])
def test_a_graph_of_the_packed_plan_sees_every_entry(write, graph):
    torch._dynamo.reset()
    module = layer(16, 16, 16)
    set_plan(module, "packed")
    x = torch.randn(5, 16)
    y = module(x)
    compiled = GRAPHS[graph](module, x)
    torch.testing.assert_close(compiled(x), y)
    write(module.base_layer.weight)
    with pytest.raises(RuntimeError, match="the weight has been changed since the packing"):
        compiled(x)


@pytest.mark.filterwarnings("ignore:`torch.jit.trace:DeprecationWarning")
@pytest.mark.parametrize("plan", ["auto", "reference"])
def test_traced_layer_computes_the_same(plan):
    module = layer(12, 16, 4).eval()
    set_plan(module, plan)
    traced = torch.jit.trace(module, torch.randn(3, 16), check_trace=False)
    x = torch.randn(5, 16)
    torch.testing.assert_close(traced(x), unfused(module, x))


@pytest.mark.filterwarnings("ignore:`torch.jit.trace:DeprecationWarning")
@pytest.mark.parametrize("plan", ["factored", "materialized"])
def test_fused_plans_are_refused_where_torch_traces(plan):
    module = layer(12, 16, 4).eval()
    set_plan(module, plan)
    with pytest.raises(RuntimeError, match="cannot run here: torch.jit traces the layer"):
        torch.jit.trace(module, torch.randn(3, 16), check_trace=False)


def test_packed_in_a_compiled_graph():
    torch._dynamo.reset()
    module = layer(96, 96, 96)
    x = torch.randn(2000, 96, requires_grad=True)
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
    wide = copy.deepcopy(module).double()
    exact = unfused(wide, x.double())
    assert_as_near(compiled(x), exact, unfused(module, x), exact)  # before there is a packing
    set_plan(module, "packed")
    module(x)
    assert_as_near(compiled(x), exact, unfused(module, x), exact)


def test_packed_under_inference_mode():
    with torch.inference_mode():
        module = LDULayer(nn.Linear(16, 16), 16)
        set_plan(module, "packed")
        x = torch.randn(5, 16)
        exact = copy.deepcopy(module.base_layer).double()(x.double())
        assert_as_near(module(x), exact, module.base_layer(x), exact)


@pytest.mark.parametrize("pivoting", ["complete", "rook"])
def test_packed_needs_partial_pivoting(pivoting):
    module = layer(16, 16, 16, pivoting=pivoting)
    set_plan(module, "packed")
    with pytest.raises(RuntimeError, match="plan 'packed' cannot run here"):
        module(torch.randn(5, 16))


def test_set_plan():
    model = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 8))
    inject(model, ["0", "2"], rank=4)
    assert set_plan(model, "factored") == 2
    assert model[0].plan == model[2].plan == "factored"
    assert copy.deepcopy(model)[0].plan == "factored"
    assert "plan" not in str(model.state_dict().keys())
    with pytest.raises(ValueError, match="plan is 'quick'; accepted: 'auto', 'reference'"):
        set_plan(model, "quick")


def test_planned():
    large = LDULayer(nn.Linear(256, 256), 16)
    x = torch.randn(2000, 256, requires_grad=True)
    assert planned(large, x) in {"factored", "reference", "hybrid", "materialized"}
    set_plan(large, "materialized")
    assert planned(large, x) == "materialized"
    assert planned(LDULayer(nn.Conv1d(4, 4, 2), 2), x) == "reference"


class TestNothingIsPassedBy:
    """A fused product does not call the base layer; where that shows, the base layer is called."""

    x = torch.randn(6, 10)

    def refused(self, module, reason):
        """The layer computes as ever, and refuses a plan that would not."""
        torch.testing.assert_close(module(self.x), unfused(module, self.x))
        set_plan(module, "factored")
        with pytest.raises(RuntimeError, match=f"plan 'factored' cannot run here: .*{reason}"):
            module(self.x)

    def test_hooks(self):
        calls = []
        module = layer()
        handle = module.base_layer.register_forward_hook(lambda *_: calls.append(1))
        module(self.x)
        assert calls == [1]
        self.refused(module, "hooks")
        handle.remove()
        module(self.x)  # and fuses again

    def test_forward_of_its_own(self):
        class Doubled(nn.Linear):
            def forward(self, x):
                return 2 * super().forward(x)

        self.refused(LDULayer(Doubled(10, 12), 4), "forward of its own")
        module = layer()
        own = module.base_layer.forward
        module.base_layer.forward = lambda x: own(x) + 1  # as accelerate's offloading does
        self.refused(module, "forward of its own")

    def test_parametrized(self):
        base = parametrizations.weight_norm(nn.Linear(10, 12))
        self.refused(LDULayer(base, 4), "forward of its own")

    def test_trained_base(self):
        module = layer()
        module.base_layer.requires_grad_()
        module(self.x).sum().backward()
        assert module.base_layer.weight.grad is not None
        self.refused(module, "is trained")

    def test_trained_bias(self):
        module = layer()
        module.base_layer.bias.requires_grad_()
        set_plan(module, "factored")
        module(self.x).sum().backward()
        torch.testing.assert_close(module.base_layer.bias.grad, torch.full((12,), 6.0))

    def test_other_kinds(self):
        module = LDULayer(nn.Embedding(20, 8), 4)
        set_plan(module, "factored")
        with pytest.raises(RuntimeError, match="the layer is a Embedding"):
            module(torch.arange(3))

    @pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated")  # torch.func.jvp's own
    def test_transforms(self):
        module = layer()
        set_plan(module, "auto")
        each = torch.func.vmap(module)(self.x)
        torch.testing.assert_close(each, module(self.x))
        jacobian = torch.func.jacrev(module)(self.x[0])
        torch.testing.assert_close(jacobian, module.base_layer.weight + module.delta_weight())
        _, tangent = torch.func.jvp(module, (self.x,), (torch.ones(6, 10),))
        torch.testing.assert_close(tangent, torch.ones(6, 10) @ jacobian.T)

    def test_second_derivatives(self):
        module = layer()
        x = self.x.clone().requires_grad_()
        set_plan(module, "reference")
        (first,) = torch.autograd.grad(module(x).square().sum(), x, create_graph=True)
        first.sum().backward()
        assert bool(module.offset.grad.any())


@pytest.mark.parametrize("plan", TORCH_PLANS)
def test_autocast(plan):
    module = layer()
    x = torch.randn(30, 10)
    set_plan(module, plan)
    with torch.autocast("cpu", torch.bfloat16):
        y = module(x)
        plain = module.base_layer(x)
    assert y.dtype == torch.bfloat16
    assert_as_near(y, unfused(module, x), plain, module.base_layer(x))
    y.float().sum().backward()
    assert module.offset.grad.dtype == torch.float32


@pytest.mark.parametrize("plan", ["factored", "hybrid"])
def test_projection_is_what_is_kept(plan):
    module = layer(30, 40, 8)
    set_plan(module, plan)
    x = torch.randn(50, 40, requires_grad=True)
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: kept.append(tensor) or tensor, lambda tensor: tensor):
        module(x)
    held = {tensor.data_ptr() for tensor in (*module.parameters(), *module.buffers())}
    large = [tuple(tensor.shape) for tensor in kept if tensor.data_ptr() not in held and tensor.numel() > 30 * 8]
    assert large == [(50, 8)]
