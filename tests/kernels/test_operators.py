"""What torch.compile, torch.export and autograd make of the operators."""

import pytest
import torch
from layer_problems import CORES, USES, assert_close, call, problem

from lowrank_ldu import ldu
from lowrank_ldu.kernels import PLANS, ldu_linear, operators, pack, skeleton_of
from lowrank_ldu.kernels.cores import as_blocks

CPU = torch.device("cpu")
NO_SKELETON = (None,) * 4


def full_rank(dtype=torch.float32):
    layer = problem(12, 6, 6, 6, dtype=dtype, device=CPU)
    factors = ldu(layer.weight)
    layer = layer._replace(left=factors.left, right=factors.right)
    return layer, pack(layer.weight, factors.left, factors.right, factors.diagonal, factors.permutation[:6])


@pytest.mark.parametrize("plan", PLANS)
def test_compiles_without_a_break(plan):
    if plan == "triton":
        pytest.importorskip("triton")
    torch._dynamo.reset()
    layer, packing = full_rank()
    skeleton = skeleton_of(layer.weight, layer.right, packing.order[:6], layer.left, torch.arange(6))
    gradient = torch.randn(12, 6)

    def step(x, delta):
        y = ldu_linear(x, *layer[1:5], delta, plan=plan, packing=packing, skeleton=skeleton, upper=True)
        return torch.tanh(y) * 2

    compiled = torch.compile(step, fullgraph=True, backend="aot_eager")
    for function in (step, compiled):
        x, delta = layer.x.clone().requires_grad_(), layer.deltas.clone().requires_grad_()
        y = function(x, delta)
        y.backward(gradient)
        results = y, x.grad, delta.grad
        if function is step:
            expected = results
    torch.testing.assert_close(results, expected)


# Each plan with each core and each use, and each core with each use: a compilation takes a second.
@pytest.mark.parametrize(
    ("plan", "core", "uses"),
    [
        (plan, core, ("rows", "mixed")[(i + j) % 2])
        for i, plan in enumerate(("auto", "factored", "triton"))
        for j, core in enumerate(CORES)
    ],
)
def test_rows_compile_without_a_break(plan, core, uses):
    if plan == "triton":
        pytest.importorskip("triton")
    torch._dynamo.reset()
    layer = problem(12, 6, 7, 4, uses=uses, core=core, device=CPU)
    gradient = torch.randn(12, 6)
    compiled = torch.compile(lambda layer: call(layer, plan=plan), fullgraph=True, backend="aot_eager")
    trained = {"x": layer.x, "deltas": layer.deltas, "bias": layer.bias, "scales": layer.scales}
    trained = {name: tensor.clone().requires_grad_() for name, tensor in trained.items() if tensor is not None}
    y = compiled(layer._replace(**trained))
    gradients = torch.autograd.grad(y, list(trained.values()), gradient)
    results = {"y": y, **dict(zip(trained, gradients, strict=True))}
    assert_close(results, layer, gradient, torch.float32)


@pytest.mark.parametrize("plan", ["auto", "factored", "hybrid"])
def test_compiles_for_any_number_of_rows(plan):
    torch._dynamo.reset()
    layer = problem(12, 6, 7, 3, device=CPU)
    compiled = torch.compile(
        lambda x: ldu_linear(x, *layer[1:6], plan=plan), fullgraph=True, backend="aot_eager", dynamic=True
    )
    for tokens in (12, 5, 30, 4000):
        x = torch.randn(tokens, 7)
        torch.testing.assert_close(compiled(x), ldu_linear(x, *layer[1:6], plan=plan))


def test_exports():
    layer = problem(12, 6, 7, 3, device=CPU)

    class Layer(torch.nn.Module):
        def __init__(self):
            super().__init__()
            for name in ("weight", "bias", "left", "right", "deltas"):
                self.register_buffer(name, getattr(layer, name))

        def forward(self, x):
            return ldu_linear(x, self.weight, self.bias, self.left, self.right, self.deltas, plan="factored")

    exported = torch.export.export(Layer(), (layer.x,))
    targets = [str(node.target) for node in exported.graph.nodes]
    assert "lowrank_ldu.linear.default" in targets
    torch.testing.assert_close(exported.module()(layer.x), call(layer))


class TestOperators:
    """torch's own checks: schema, aliasing, fake tensors, and gradients under compilation."""

    @pytest.mark.parametrize("core", CORES)
    @pytest.mark.parametrize("uses", USES)
    def test_linear(self, uses, core):
        layer = problem(20, 6, 7, 6, uses=uses, core=core, device=CPU)
        deltas = as_blocks(layer.deltas if uses != "one" else layer.deltas[None])
        index = None if layer.index is None else layer.index.reshape(20, -1)
        arguments = (*layer[:5], deltas, index, layer.scales, *NO_SKELETON, False, "factored")
        torch.library.opcheck(operators.linear, arguments)

    def test_hybrid(self):
        layer = problem(20, 6, 7, 3, device=CPU)
        constant = (layer.left, layer.right, layer.deltas[None], None, None, *NO_SKELETON, False, "hybrid")
        torch.library.opcheck(operators.linear, (layer.x, layer.weight, layer.bias, *constant))
        for needs in ((True, True, False), (True, False, False), (False, True, False)):
            arguments = (torch.randn(20, 6), torch.randn(20, 3), layer.weight, *constant, *needs)
            torch.library.opcheck(operators.linear_backward, arguments)

    @pytest.mark.parametrize("core", CORES)
    def test_linear_backward(self, core):
        layer = problem(20, 6, 7, 6, uses="mixed", core=core, device=CPU)
        deltas = as_blocks(layer.deltas)
        rest = (
            layer.weight,
            layer.left,
            layer.right,
            deltas,
            layer.index,
            layer.scales,
            *NO_SKELETON,
            False,
            "factored",
        )
        for needs in ((True, True, True), (True, False, False), (False, True, False), (False, False, True)):
            torch.library.opcheck(operators.linear_backward, (torch.randn(20, 6), torch.randn(20, 6), *rest, *needs))

    def test_packed_linear(self):
        layer, packing = full_rank()
        constant = (layer.left, layer.right, packing.diagonal, packing.order)
        torch.library.opcheck(operators.packed_linear, (layer.x, layer.bias, *constant, packing.inverse))
        gradient, projected = torch.randn(12, 6), torch.randn(12, 6)
        for need_x in (True, False):
            torch.library.opcheck(operators.packed_linear_backward, (gradient, projected, *constant, need_x))


def test_second_derivatives_are_refused_by_name_and_given_by_reference():
    layer = problem(4, 5, 6, 3, device=CPU)
    x = layer.x.requires_grad_()
    (first,) = torch.autograd.grad(call(layer, plan="factored").square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        first.sum().backward()
    (first,) = torch.autograd.grad(call(layer, plan="reference").square().sum(), x, create_graph=True)
    first.sum().backward()
    assert bool(x.grad.any())


@pytest.mark.parametrize(
    ("plan", "index", "message"),
    [
        ("packed", None, "plan is 'packed'; accepted: 'factored', 'hybrid', 'skeleton', 'triton'"),
        ("hybrid", torch.zeros(4, 1, dtype=torch.int64), "plan is 'hybrid' and index is given; accepted: None"),
    ],
)
def test_operators_refuse_what_they_do_not_compute(plan, index, message):
    layer = problem(4, 5, 6, 3, device=CPU)
    with pytest.raises(ValueError, match=message):
        operators.linear(*layer[:5], layer.deltas[None], index, None, *NO_SKELETON, False, plan)
