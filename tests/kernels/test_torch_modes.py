"""A call computes the same under autocast, transforms, fake tensors and export, and with old packings."""

import pytest
import torch
from layer_problems import TORCH_PLANS, assert_close, call, problem, values_and_gradients
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx

from lowrank_ldu import ldu
from lowrank_ldu.kernels import Problem, choose_plan, ldu_linear, ldu_linear_multi, operators, pack
from lowrank_ldu.nn import LDULayer, set_plan

CPU = torch.device("cpu")


class TestAutocast:
    @pytest.mark.parametrize("plan", TORCH_PLANS)
    @pytest.mark.parametrize("tokens", [8, 600])
    @pytest.mark.parametrize("inside", [True, False])
    def test_every_plan_computes_in_its_dtype(self, plan, tokens, inside):
        layer = problem(tokens, 96, 80, 8, device=CPU)
        gradient = torch.randn(tokens, 96, generator=torch.Generator().manual_seed(1)).bfloat16()
        x, delta = layer.x.clone().requires_grad_(), layer.deltas.clone().requires_grad_()
        with torch.autocast("cpu", torch.bfloat16):
            y = call(layer._replace(x=x, deltas=delta), plan=plan)
            if inside:
                y.backward(gradient)
        if not inside:
            y.backward(gradient)
        assert y.dtype == torch.bfloat16
        assert (x.grad.dtype, delta.grad.dtype) == (torch.float32, torch.float32)
        results = {"y": y.detach(), "x": x.grad, "deltas": delta.grad}
        assert_close(results, layer, gradient, torch.bfloat16)

    def test_rows(self):
        layer = problem(50, 30, 40, 8, uses="mixed", device=CPU)
        with torch.autocast("cpu", torch.bfloat16):
            y = call(layer, plan="factored")
        assert y.dtype == torch.bfloat16

    def test_compiled(self):
        torch._dynamo.reset()
        layer = problem(600, 96, 80, 8, device=CPU)
        compiled = torch.compile(lambda x: call(layer._replace(x=x)), fullgraph=True, backend="aot_eager")
        with torch.autocast("cpu", torch.bfloat16):
            y = compiled(layer.x)
            assert y.dtype == torch.bfloat16
        assert_close({"y": y}, layer, torch.zeros(600, 96), torch.bfloat16)

    def test_float64_stays(self):
        layer = LDULayer(nn.Linear(48, 64).double(), rank=8)
        x = torch.randn(5, 48, dtype=torch.float64)
        with torch.autocast("cpu", torch.bfloat16):
            for plan in TORCH_PLANS:
                set_plan(layer, plan)
                assert torch.equal(layer(x), layer.base_layer(x))


class TestPackings:
    def packed(self, dtype=torch.float32, size=24):
        weight = torch.randn(size, size, generator=torch.Generator().manual_seed(0)).to(dtype)
        factors = ldu(weight)
        packing = pack(weight, factors.left, factors.right, factors.diagonal, factors.permutation)
        return weight, factors, packing

    def call(self, weight, factors, packing, x=None, plan="packed", **options):
        x = torch.randn(5, weight.shape[1]).to(weight) if x is None else x
        delta = torch.zeros(factors.rank)
        return ldu_linear(x, weight, None, factors.left, factors.right, delta, plan=plan, packing=packing, **options)

    def test_of_another_weight(self):
        weight, factors, packing = self.packed()
        self.call(weight, factors, packing)
        for other in (3 * weight, weight + 0.01 * torch.eye(24)):
            with pytest.raises(ValueError, match="packing is not of this weight and these factors"):
                self.call(other, factors, packing)

    def test_of_a_weight_that_is_orthogonal_to_most(self):
        for signs in (1, -1):
            weight = torch.ones(2, 1) @ torch.tensor([[1.0, float(signs)]]) / 3
            factors = ldu(weight)
            packing = pack(weight, factors.left, factors.right, factors.diagonal, factors.permutation)
            self.call(weight, factors, packing)

    def test_of_another_kind(self):
        weight, factors, _ = self.packed()
        with pytest.raises(TypeError, match="packing is a str; accepted: what pack"):
            self.call(weight, factors, "packing")
        with pytest.raises(ValueError, match="packing is of a weight with .* accepted:"):
            self.call(weight, factors, self.packed(size=20)[2])
        with pytest.raises(TypeError, match="packing has dtype float64; accepted: x's, float32"):
            self.call(weight, factors, self.packed(torch.float64)[2])

    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
    def test_half_precision(self, dtype):
        size = Problem(4096, 768, 768, 768, dtype, CPU, True, True, packing=True, upper=True)
        assert choose_plan(size).plan != "packed"
        with pytest.raises(RuntimeError, match="lower precisions than float32 packed factors do not hold a weight"):
            choose_plan(size, "packed")

    def layer(self):
        """A layer for whose rows "auto" takes the packed plan."""
        torch.manual_seed(0)
        layer = LDULayer(nn.Linear(768, 768), 768)
        x = torch.randn(1500, 768, requires_grad=True)
        layer(x)
        assert layer.factors._packing is not None
        return layer, x

    @pytest.mark.parametrize("change", ["data", "in place", "replaced"])
    def test_weights_that_are_changed(self, change):
        layer, x = self.layer()
        with torch.no_grad():
            if change == "data":
                layer.base_layer.weight.data.mul_(2)
            elif change == "in place":
                layer.base_layer.weight.mul_(2)
            else:
                layer.base_layer.weight = nn.Parameter(2 * layer.base_layer.weight, requires_grad=False)
        torch.testing.assert_close(layer(x), layer.base_layer(x), rtol=1e-4, atol=1e-4)

    def test_weights_that_are_changed_after_compilation(self):
        torch._dynamo.reset()
        layer, x = self.layer()
        compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
        compiled(x)
        with torch.no_grad():
            layer.base_layer.weight.mul_(2)
        torch.testing.assert_close(compiled(x), layer.base_layer(x), rtol=1e-4, atol=1e-4)

    def test_another_dtype_after_compilation(self):
        torch._dynamo.reset()
        layer, x = self.layer()
        compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
        layer.double()
        x = x.detach().double()
        torch.testing.assert_close(compiled(x), layer.base_layer(x), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("uses", ["one", "rows", "mixed"])
def test_wide_deltas_in_the_kernels(uses):
    """float64 diagonals beside float32 weights: computed in float32, and their gradients are float64."""
    pytest.importorskip("triton")
    layer = problem(20, 9, 7, 3, uses=uses)
    layer = layer._replace(deltas=layer.deltas.double())
    gradient = torch.randn(20, 9, generator=torch.Generator().manual_seed(1)).to(layer.x)
    results = values_and_gradients(layer, gradient, plan="triton")
    assert results["deltas"].dtype == torch.float64
    assert_close(results, layer, gradient, torch.float32)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_operators_of_the_kernels(dtype):
    pytest.importorskip("triton")
    layer = problem(20, 6, 7, 3, uses="rows")
    constant = (
        layer.left,
        layer.right,
        layer.deltas.to(dtype),
        layer.index[:, None],
        None,
        *(None,) * 4,
        True,
        "triton",
    )
    torch.library.opcheck(operators.linear, (layer.x, layer.weight, layer.bias, *constant))
    for needs in ((True, True, False), (True, False, False), (False, True, False)):
        arguments = (torch.randn(20, 6).to(layer.x), torch.randn(20, 3).to(layer.x), layer.weight, *constant, *needs)
        torch.library.opcheck(operators.linear_backward, arguments)


class TestTransforms:
    @pytest.mark.parametrize("tokens", [8, 600])
    def test_gradients_and_batches(self, tokens):
        layer = problem(tokens, 96, 80, 8, device=CPU)
        options = {"check_values": False}
        found = torch.func.grad(lambda delta: call(layer._replace(deltas=delta), **options).sum())(layer.deltas)
        assert_close({"deltas": found}, layer, torch.ones(tokens, 96), torch.float32)
        many = torch.stack([layer.deltas, 2 * layer.deltas])
        each = torch.func.vmap(lambda delta: call(layer._replace(deltas=delta), **options))(many)
        assert_close({"y": each[1]}, layer._replace(deltas=many[1]), torch.zeros(tokens, 96), torch.float32)

    def test_plans_that_take_no_part_say_so(self):
        layer = problem(8, 6, 5, 3, device=CPU)
        with pytest.raises(RuntimeError, match=r"plan 'factored' cannot run here: a transform of torch.func"):
            torch.func.grad(lambda delta: call(layer._replace(deltas=delta), plan="factored").sum())(layer.deltas)


class TestWithoutValues:
    def test_meta(self):
        layer = problem(8, 6, 5, 3, uses="rows", device=CPU)
        meta = layer._replace(
            **{name: getattr(layer, name).to("meta") for name in ("x", "weight", "bias", "left", "right", "deltas")},
            index=layer.index.to("meta"),
        )
        assert call(meta).shape == (8, 6)

    def test_fake(self):
        with FakeTensorMode():
            weight, x = torch.empty(6, 5), torch.empty(8, 5)
            y = ldu_linear(x, weight, None, torch.empty(6, 3), torch.empty(3, 5), torch.empty(3), upper=True)
            assert y.shape == (8, 6)


class TestExport:
    @pytest.mark.parametrize("strict", [True, False])
    @pytest.mark.parametrize("plan", ["auto", "factored", "hybrid"])
    def test_layers_for_any_number_of_rows(self, plan, strict):
        torch._dynamo.reset()
        torch.manual_seed(0)
        layer = LDULayer(nn.Linear(48, 64), rank=8)
        layer.adapter.set_z(1.5 * layer.z, layer.factors)
        set_plan(layer, plan)
        rows = {"x": {0: torch.export.Dim("T", min=2, max=100_000)}}
        exported = torch.export.export(layer, (torch.randn(100, 48),), dynamic_shapes=rows, strict=strict)
        for tokens in (3, 100, 5000):
            x = torch.randn(tokens, 48)
            torch.testing.assert_close(exported.module()(x), layer(x), rtol=1e-4, atol=1e-4)
        if plan != "auto":
            assert any("lowrank_ldu.linear" in str(node.target) for node in exported.graph.nodes)

    @pytest.mark.parametrize("plan", TORCH_PLANS)
    def test_graphs_of_symbols(self, plan):
        layer = problem(12, 6, 7, 3, device=CPU)
        graph = make_fx(lambda *tensors: ldu_linear(*tensors, plan=plan), tracing_mode="symbolic")(*layer[:6])
        torch.testing.assert_close(graph(*layer[:6]), call(layer, plan=plan))


def test_small_updates_show_in_half_precision():
    """Where W is in half precision, plans that round its sum with the update to W's grid are not taken for nothing."""
    for m, n, r, tokens in ((64, 48, 4, 100), (128, 128, 64, 100), (128, 128, 4, 5000)):
        weight = torch.where(torch.rand(m, n, generator=torch.Generator().manual_seed(0)) < 0.5, -1.0, 1.0).bfloat16()
        factors = ldu(weight, r)
        left, right = factors.left.bfloat16(), factors.right.bfloat16()
        x = torch.randn(tokens, n, generator=torch.Generator().manual_seed(1)).bfloat16()
        delta = 3e-3 * torch.ones(r)
        for training in (True, False):
            y = ldu_linear(x, weight, None, left, right, delta.requires_grad_(training))
            assert not torch.equal(y, x @ weight.T)


class TestNoAdapters:
    @pytest.mark.parametrize("plan", ["reference", "factored"])
    def test_rows_of_none_are_nan(self, plan):
        layer = problem(4, 5, 6, 3, uses="rows", device=CPU)
        deltas = torch.ones(0, 3, requires_grad=True)
        y = call(layer._replace(deltas=deltas), plan=plan, check_values=False)
        assert bool(y.isnan().all())
        y.sum().backward()
        assert deltas.grad.shape == (0, 3)

    @pytest.mark.parametrize("plan", ["reference", "factored"])
    def test_mixes_of_none_are_the_base(self, plan):
        layer = problem(4, 5, 6, 3, uses="mixed", device=CPU)
        scales = torch.ones(4, 0, requires_grad=True)
        y = ldu_linear_multi(*layer[:6], layer.index[:, :0], scales=scales, plan=plan)
        torch.testing.assert_close(y, torch.nn.functional.linear(*layer[:3]))
        y.sum().backward()
        assert scales.grad.shape == (4, 0)

    def test_a_single_row_has_no_adapter_of_its_own(self):
        layer = problem(4, 5, 6, 3, uses="rows", device=CPU)
        with pytest.raises(ValueError, match=r"x has shape \(6,\); accepted: \(T, n\), or more dimensions"):
            call(layer._replace(x=layer.x[0]))
