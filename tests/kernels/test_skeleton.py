"""The projection that is gathered from the base's output is the product, to a bound from the amplification."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from layer_problems import CORES, USES, assert_close, call, oracle, problem, skeleton_problem, values_and_gradients

from lowrank_ldu import ldu
from lowrank_ldu.kernels import (
    Machine,
    Problem,
    Skeleton,
    choose_plan,
    gathered,
    ldu_linear,
    operators,
    plan_costs,
    skeleton_of,
)
from lowrank_ldu.kernels.skeleton import amplification_of, largest_amplification

CPU = torch.device("cpu")


def dense(layer):
    """The one core of a problem as a matrix."""
    cores = layer.deltas
    return torch.block_diag(*cores) if cores.ndim == 3 else cores if cores.ndim == 2 else torch.diag(cores)


def sums_without_signs(layer, skeleton, gradient, plan):
    """What errors scale with: |triangle| |W[rows]| stands for right, |W[:, columns]| |column_triangle| for left.

    The bias is in the gathered entries: a column of W, for an input of one.
    """
    wide = layer.to(torch.float64)
    weight, left, right = wide.weight, wide.left, wide.right
    rows, triangle = skeleton.rows, skeleton.triangle.double()
    columns = torch.arange(0) if skeleton.columns is None else skeleton.columns
    mirrored = None if skeleton.columns is None else skeleton.column_triangle.double()
    size = weight.abs()
    if plan == "hybrid":
        core = dense(wide)
        triangle = triangle @ torch.linalg.inv(torch.eye(len(rows)) + left[rows] @ core @ triangle)
        if mirrored is not None:
            mirrored = mirrored @ torch.linalg.inv(torch.eye(len(rows)) + core @ right[:, columns] @ mirrored)
        size = size + left.abs() @ core.abs() @ right.abs()
    bias = torch.zeros(len(weight)) if wide.bias is None else wide.bias
    size = torch.cat([size, bias.abs()[:, None].double()], dim=1)
    n = weight.shape[1]
    enlarged_right = triangle.abs() @ size[rows]
    enlarged_right[:, :n] += right.abs()
    enlarged_left = left.abs() if mirrored is None else left.abs() + size[:, columns] @ mirrored.abs()
    ones = torch.ones(len(wide.x), 1, dtype=torch.float64)
    changed = wide.without_signs()._replace(
        x=torch.cat([wide.x.abs(), ones], dim=1), weight=size, bias=None, left=enlarged_left, right=enlarged_right
    )
    sums = oracle(changed, gradient.abs())
    return sums | {"x": sums["x"][:, :n], "bias": gradient.abs().double().sum(dim=0)}


@settings(max_examples=60, deadline=None)
@given(
    tokens=st.integers(0, 40),
    m=st.integers(6, 40),
    n=st.integers(6, 40),
    rank=st.sampled_from([1, 4, 6]),
    uses=st.sampled_from(USES),
    core=st.sampled_from(CORES),
    columns=st.booleans(),
    plan=st.sampled_from(["skeleton", "hybrid"]),
    dtype=st.sampled_from([torch.float64, torch.float32, torch.bfloat16, torch.float16]),
    bias=st.booleans(),
    seed=st.integers(0, 99),
)
def test_the_gathered_projection_is_the_product(tokens, m, n, rank, uses, core, columns, plan, dtype, bias, seed):
    uses = "one" if plan == "hybrid" else uses
    layer, skeleton = skeleton_problem(
        tokens, m, n, rank, uses=uses, core=core, columns=columns, dtype=dtype, bias=bias, seed=seed, device=CPU
    )
    if plan == "hybrid":
        layer = layer._replace(deltas=layer.deltas / 8)
    gradient = torch.randn(tokens, m, generator=torch.Generator().manual_seed(seed)).to(dtype)
    amplification = amplification_of(layer.x, skeleton, layer.right, layer.bias)
    if plan == "skeleton" and amplification > largest_amplification(dtype):
        with pytest.raises(RuntimeError, match="rounding would be enlarged .* times in the projection; accepted: up"):
            call(layer, plan=plan, skeleton=skeleton)
        return
    results = values_and_gradients(layer, gradient, plan=plan, skeleton=skeleton)
    assert_close(results, layer, gradient, dtype, sums_without_signs(layer, skeleton, gradient, plan))


@pytest.mark.parametrize("plan", ["skeleton", "hybrid"])
@pytest.mark.parametrize("core", CORES)
@pytest.mark.parametrize("uses", USES)
@pytest.mark.parametrize("columns", [True, False])
def test_by_finite_differences(plan, core, uses, columns):
    if plan == "hybrid" and uses != "one":
        return
    layer, skeleton = skeleton_problem(
        30 if plan == "hybrid" else 4, 6, 6, 4, uses=uses, core=core, columns=columns, dtype=torch.float64, device=CPU
    )
    layer = layer._replace(deltas=layer.deltas / 4)
    trained = {"x": layer.x, "deltas": layer.deltas, "bias": layer.bias}
    if uses == "mixed":
        trained["scales"] = layer.scales

    def function(*tensors):
        y = call(layer._replace(**dict(zip(trained, tensors, strict=True))), plan=plan, skeleton=skeleton)
        return y[:4]

    assert torch.autograd.gradcheck(function, [tensor.requires_grad_() for tensor in trained.values()])


class TestHybrid:
    """The summed weight's output gives the projection, unless that would lose its digits."""

    def problem(self):
        return skeleton_problem(60, 12, 14, 4, core="dense", device=CPU, dtype=torch.float64)

    def counted(self, monkeypatch, layer, skeleton):
        found = []
        recovered = gathered._recovered

        def counting(*arguments):
            found.append(recovered(*arguments))
            return found[-1]

        monkeypatch.setattr(gathered, "_recovered", counting)
        gradient = torch.randn(60, 12, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        results = values_and_gradients(layer, gradient, plan="hybrid", skeleton=skeleton)
        expected = oracle(layer, gradient)
        torch.testing.assert_close(results, expected, rtol=1e-9, atol=1e-9)
        return [transform is not None for transform in found]

    def test_gathers(self, monkeypatch):
        layer, skeleton = self.problem()
        assert self.counted(monkeypatch, layer, skeleton) == [True, True]

    def test_falls_back(self, monkeypatch):
        """A core that takes the update's rows to zero: W + left K right is zero in them, and so is y."""
        layer, skeleton = self.problem()
        core = -torch.linalg.inv(skeleton.triangle @ layer.left[skeleton.rows])
        layer = layer._replace(deltas=core)
        assert not bool((layer.weight + layer.left @ core @ layer.right)[skeleton.rows].abs().max() > 1e-12)
        assert self.counted(monkeypatch, layer, skeleton) == [False, False]

    def test_near_to_it(self, monkeypatch):
        layer, skeleton = self.problem()
        core = -torch.linalg.inv(skeleton.triangle @ layer.left[skeleton.rows])
        layer = layer._replace(deltas=(1 - 1e-9) * core)
        assert self.counted(monkeypatch, layer, skeleton) == [False, False]

    def test_in_float32(self):
        layer, skeleton = skeleton_problem(60, 12, 14, 4, core="dense", device=CPU)
        core = -torch.linalg.inv(skeleton.triangle @ layer.left[skeleton.rows])
        gradient = torch.randn(60, 12, generator=torch.Generator().manual_seed(0))
        for near in (1.0, 1 - 1e-6, 1 - 1e-3):
            changed = layer._replace(deltas=near * core)
            results = values_and_gradients(changed, gradient, plan="hybrid", skeleton=skeleton)
            expected = oracle(changed, gradient)
            for name, value in results.items():
                # Half the digits remain where it gathers, and all of them where it does not.
                limit = 10 * torch.finfo(torch.float32).eps ** 0.5 * float(expected[name].abs().max() + 1)
                torch.testing.assert_close(value.double(), expected[name], rtol=0, atol=limit)


class TestSkeletonOf:
    def factors(self, dtype=torch.float64):
        weight = torch.randn(9, 12, generator=torch.Generator().manual_seed(0)).to(dtype)
        return weight, ldu(weight, 4)

    @pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
    def test_makes_the_factors(self, dtype):
        weight, factors = self.factors(dtype)
        left, right = factors.left.to(dtype), factors.right.to(dtype)
        skeleton = skeleton_of(weight, right, factors.permutation[:4], left, torch.arange(4))
        wide = skeleton.triangle.dtype
        assert wide == (torch.float64 if dtype == torch.float64 else torch.float32)
        tolerance = 100 * max(torch.finfo(dtype).eps, torch.finfo(wide).eps)
        weight = weight.to(wide)
        torch.testing.assert_close(
            skeleton.triangle @ weight[skeleton.rows], right.to(wide), rtol=tolerance, atol=tolerance
        )
        torch.testing.assert_close(
            weight[:, skeleton.columns] @ skeleton.column_triangle, left.to(wide), rtol=tolerance, atol=tolerance
        )
        assert skeleton.amplification >= 1 - tolerance

    def test_scaled_factors_and_rows_in_another_order(self):
        weight, factors = self.factors()
        rows = factors.permutation[:4].flip(0)
        scaled = factors.right * torch.tensor([1.0, 0.5, 8.0, 0.25])[:, None]
        first, second = skeleton_of(weight, factors.right, rows), skeleton_of(weight, scaled, rows)
        assert first.amplification == pytest.approx(second.amplification)
        torch.testing.assert_close(second.triangle @ weight[rows], scaled)

    def test_refuses(self):
        weight, factors = self.factors()
        rows = factors.permutation[:4]
        with pytest.raises(ValueError, match="of right is off the span of weight's rows by .* accepted: up to"):
            skeleton_of(weight, factors.right, factors.permutation[4:8])
        with pytest.raises(ValueError, match="of right is off the span of weight's rows by"):
            skeleton_of(weight.flip(1), factors.right, rows)
        with pytest.raises(ValueError, match="of left's transpose is off the span of weight's columns by"):
            skeleton_of(weight, factors.right, rows, factors.left, torch.arange(1, 5))
        with pytest.raises(ValueError, match=r"rows has shape \(3,\); accepted: \(4,\), integers"):
            skeleton_of(weight, factors.right, rows[:3])
        with pytest.raises(ValueError, match="rows reaches from -1 to 3; accepted: 0 to 8"):
            skeleton_of(weight, factors.right, torch.tensor([0, 1, -1, 3]))
        with pytest.raises(ValueError, match="depend on each other; accepted: independent ones"):
            skeleton_of(torch.zeros(9, 12, dtype=torch.float64), factors.right, rows)
        with pytest.raises(ValueError, match=r"right has shape \(4, 11\) and dtype float64; accepted: \(r, 12\) of"):
            skeleton_of(weight, factors.right[:, :11], rows)
        with pytest.raises(ValueError, match="and dtype float32; accepted: .* of weight's dtype"):
            skeleton_of(weight, factors.right.float(), rows)


class TestRefusedSkeletons:
    def call(self, layer, skeleton, **options):
        return call(layer, plan="skeleton", skeleton=skeleton, **options)

    def test_of_another_weight(self):
        layer, skeleton = skeleton_problem(8, 9, 12, 4, device=CPU)
        other, _ = skeleton_problem(8, 9, 12, 4, device=CPU, seed=1)
        with pytest.raises(ValueError, match="skeleton is not of this weight and these factors"):
            self.call(layer._replace(weight=other.weight), skeleton)
        with pytest.raises(ValueError, match="skeleton is not of this weight and these factors"):
            self.call(layer._replace(left=other.left), skeleton)

    def test_of_another_kind(self):
        layer, skeleton = skeleton_problem(8, 9, 12, 4, device=CPU)
        _, smaller = skeleton_problem(8, 9, 12, 3, device=CPU)
        with pytest.raises(TypeError, match=r"skeleton is a tuple; accepted: what skeleton_of"):
            self.call(layer, (skeleton.rows, skeleton.triangle))
        with pytest.raises(ValueError, match="skeleton is of 3 rows; accepted: 4, the rank of the factors"):
            self.call(layer, smaller)
        with pytest.raises(TypeError, match=r"skeleton.triangle has dtype float64; accepted: float32"):
            self.call(layer, skeleton._replace(triangle=skeleton.triangle.double()))
        with pytest.raises(ValueError, match=r"skeleton.rows is on meta; accepted: x's device, cpu"):
            self.call(layer, skeleton._replace(rows=skeleton.rows.to("meta")))

    def test_none(self):
        with pytest.raises(RuntimeError, match="plan 'skeleton' cannot run here: there is no skeleton of this weight"):
            self.call(problem(4, 5, 6, 3, device=CPU), None)
        layer = problem(4, 5, 6, 3, device=CPU)
        arguments = (*layer[:5], layer.deltas[None], None, None, *(None,) * 4, False, "skeleton")
        with pytest.raises(ValueError, match="plan is 'skeleton' and there is no skeleton; accepted:"):
            operators.linear(*arguments)


def training(tokens, m, n, r, **options):
    options = {"dtype": torch.float32, "device": CPU, "x_gradient": True, "delta_gradient": True} | options
    return Problem(tokens, m, n, r, **options)


# Of two threads, whatever this machine has.
MACHINE = Machine({torch.float32: 96e9, torch.bfloat16: 96e9}, bandwidth=16e9, call=6e-6, operator=6e-5)


class TestPlanner:
    def test_takes_it_where_it_is_cheapest(self):
        with_one = {"block": 20, "amplification": 4.0, "columns": True}
        for size in ((512, 4096, 4096, 20), (512, 4096, 4096, 64)):
            assert choose_plan(training(*size, **with_one), machine=MACHINE).plan == "skeleton"
        assert choose_plan(training(2048, 768, 768, 64, **with_one), machine=MACHINE).plan == "hybrid"
        assert (
            choose_plan(training(2048, 768, 768, 64, dtype=torch.bfloat16, **with_one), machine=MACHINE).plan
            == "skeleton"
        )
        assert choose_plan(training(2048, 768, 768, 64, rowwise=True, **with_one), machine=MACHINE).plan == "skeleton"

    def test_costs(self):
        without, with_rows = training(512, 4096, 4096, 64), training(512, 4096, 4096, 64, amplification=4.0)
        both = with_rows._replace(columns=True)
        costs = [plan_costs(problem, MACHINE) for problem in (without, with_rows, both)]
        for plan in ("skeleton", "hybrid"):
            assert costs[1][plan] > costs[2][plan]
        assert costs[0]["hybrid"] > costs[1]["hybrid"]
        assert costs[1]["skeleton"] < costs[1]["factored"]

    def test_says_why_not(self):
        assert "no skeleton of this weight" in choose_plan(training(8, 4, 4, 2)).reasons["skeleton"]
        for dtype, accepted in ((torch.bfloat16, "11.3"), (torch.float16, "32"), (torch.float32, "2.9e\\+03")):
            with pytest.raises(
                RuntimeError, match=f"enlarged 3e\\+03 times in the projection; accepted: up to {accepted}"
            ):
                choose_plan(training(8, 4, 4, 2, dtype=dtype, amplification=3000.0), "skeleton")
        trained = training(8, 4, 4, 2, amplification=1.0, constant=False)
        assert "requires a gradient" in choose_plan(trained).reasons["skeleton"]


@pytest.mark.parametrize("plan", ["skeleton", "hybrid"])
def test_a_core_of_zero_is_the_frozen_layer_bit_for_bit(plan):
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        layer, skeleton = skeleton_problem(60, 20, 30, 4, core="dense", dtype=dtype, device=CPU)
        base = torch.nn.functional.linear(*layer[:3])
        y = call(layer._replace(deltas=torch.zeros(4, 4)), plan=plan, skeleton=skeleton)
        assert torch.equal(y, base)


def test_the_projection_is_kept_and_not_x():
    layer, skeleton = skeleton_problem(50, 30, 40, 8, device=CPU)
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: kept.append(tensor) or tensor, lambda tensor: tensor):
        x, delta = layer.x.requires_grad_(), layer.deltas.requires_grad_()
        ldu_linear(x, *layer[1:5], delta, plan="skeleton", skeleton=skeleton)
    constants = (*layer[1:5], delta, *(part for part in skeleton if isinstance(part, torch.Tensor)))
    pointers = {tensor.data_ptr() for tensor in constants}
    assert [tuple(tensor.shape) for tensor in kept if tensor.data_ptr() not in pointers] == [(50, 8)]


def test_transposed_weights():
    layer, skeleton = skeleton_problem(60, 20, 30, 4, core="dense", device=CPU)
    transposed = layer._replace(weight=layer.weight.T.contiguous().T)
    for plan in ("skeleton", "hybrid"):
        torch.testing.assert_close(
            call(transposed, plan=plan, skeleton=skeleton), call(layer, plan="reference"), rtol=1e-4, atol=1e-4
        )


@pytest.mark.parametrize("uses", USES)
def test_compiles_without_a_break(uses):
    torch._dynamo.reset()
    layer, skeleton = skeleton_problem(12, 6, 7, 4, uses=uses, core="blocks", device=CPU)
    gradient = torch.randn(12, 6)

    def step(layer):
        return torch.tanh(call(layer, plan="skeleton", skeleton=skeleton)) * 2

    found = []
    for function in (step, torch.compile(step, fullgraph=True, backend="aot_eager")):
        trained = {"x": layer.x, "deltas": layer.deltas, "bias": layer.bias, "scales": layer.scales}
        trained = {name: part.clone().requires_grad_() for name, part in trained.items() if part is not None}
        y = function(layer._replace(**trained))
        found.append([y, *torch.autograd.grad(y, list(trained.values()), gradient)])
    torch.testing.assert_close(*found)


def test_exports():
    layer, skeleton = skeleton_problem(12, 6, 7, 4, core="dense", device=CPU)

    class Layer(torch.nn.Module):
        def __init__(self):
            super().__init__()
            for name in ("weight", "bias", "left", "right", "deltas"):
                self.register_buffer(name, getattr(layer, name))
            for name in ("rows", "triangle", "columns", "column_triangle"):
                self.register_buffer(name, getattr(skeleton, name))

        def forward(self, x):
            own = Skeleton(self.rows, self.triangle, 1.0, self.columns, self.column_triangle)
            factors = (self.weight, self.bias, self.left, self.right, self.deltas)
            return ldu_linear(x, *factors, plan="skeleton", skeleton=own)

    exported = torch.export.export(Layer(), (layer.x,))
    assert any("lowrank_ldu.linear" in str(node.target) for node in exported.graph.nodes)
    torch.testing.assert_close(exported.module()(layer.x), call(layer), rtol=1e-4, atol=1e-4)


def test_operators():
    layer, skeleton = skeleton_problem(20, 6, 7, 4, core="dense", device=CPU)
    rows = (*skeleton[:2], *skeleton[3:])
    for plan in ("skeleton", "hybrid"):
        constant = (layer.left, layer.right, layer.deltas[None, None], None, None, *rows, False, plan)
        torch.library.opcheck(operators.linear, (layer.x, layer.weight, layer.bias, *constant))
        for needs in ((True, True, False), (True, False, False), (False, True, False)):
            arguments = (torch.randn(20, 6), torch.randn(20, 4), layer.weight, *constant, *needs)
            torch.library.opcheck(operators.linear_backward, arguments)


def test_autocast():
    layer, skeleton = skeleton_problem(40, 30, 20, 4, core="dense", device=CPU)
    with torch.autocast("cpu", torch.bfloat16):
        y = call(layer, plan="skeleton", skeleton=skeleton)
    assert y.dtype == torch.bfloat16
    half = layer.to(torch.bfloat16)
    torch.testing.assert_close(y, call(half, plan="skeleton", skeleton=skeleton), rtol=0.05, atol=0.05)
