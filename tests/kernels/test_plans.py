"""Every plan in torch against the definition in float64, and the definition against finite differences."""

from unittest import mock

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from layer_problems import CORES, TORCH_PLANS, USES, assert_close, call, oracle, problem, values_and_gradients

from lowrank_ldu import ldu
from lowrank_ldu.kernels import core_product, ldu_linear, ldu_linear_multi, ldu_update, pack, packed
from lowrank_ldu.kernels.call import Adapters, Layer
from lowrank_ldu.kernels.cores import as_blocks
from lowrank_ldu.kernels.reference import reference_linear

CPU = torch.device("cpu")
sizes = st.integers(1, 40)


@settings(max_examples=60, deadline=None)
@given(
    tokens=st.integers(0, 20),
    m=sizes,
    n=sizes,
    rank=st.integers(1, 40),
    uses=st.sampled_from(USES),
    core=st.sampled_from(CORES),
    plan=st.sampled_from(TORCH_PLANS),
    dtype=st.sampled_from([torch.float64, torch.float32, torch.bfloat16, torch.float16]),
    bias=st.booleans(),
    seed=st.integers(0, 99),
)
def test_values_and_gradients(tokens, m, n, rank, uses, core, plan, dtype, bias, seed):
    options = {"uses": uses, "core": core, "dtype": dtype, "bias": bias, "seed": seed, "device": CPU}
    layer = problem(tokens, m, n, min(rank, m, n), **options)
    gradient = torch.randn(tokens, m, generator=torch.Generator().manual_seed(seed)).to(dtype)
    if plan in {"hybrid", "materialized"} and uses != "one":
        with pytest.raises(RuntimeError, match="cores of their own have no common weight"):
            call(layer, plan=plan)
        return
    results = values_and_gradients(layer, gradient, plan=plan, upper=True)
    assert_close(results, layer, gradient, dtype)


@pytest.mark.parametrize("core", CORES)
@pytest.mark.parametrize("uses", USES)
def test_the_definition_by_finite_differences(uses, core):
    layer = problem(3, 4, 5, 4 if core == "blocks" else 2, uses=uses, core=core, dtype=torch.float64, device=CPU)
    inputs = [tensor.detach().requires_grad_() for tensor in (*layer[:5], layer.deltas)]
    index = None if layer.index is None else layer.index.reshape(3, -1)

    def definition(*tensors):
        cores = as_blocks(tensors[5] if index is not None else tensors[5][None])
        return reference_linear(tensors[0], Layer(*tensors[1:5]), Adapters(cores, index, layer.scales))

    assert torch.autograd.gradcheck(definition, inputs)
    assert torch.autograd.gradgradcheck(definition, inputs)


@pytest.mark.parametrize("plan", ["factored", "hybrid", "materialized"])
@pytest.mark.parametrize("uses", USES)
@pytest.mark.parametrize("core", CORES)
def test_plans_by_finite_differences(plan, uses, core):
    if plan in {"hybrid", "materialized"} and uses != "one":
        return
    layer = problem(4, 5, 6, 4 if core == "blocks" else 3, uses=uses, core=core, dtype=torch.float64, device=CPU)
    trained = {"x": layer.x, "deltas": layer.deltas, "bias": layer.bias}
    if uses == "mixed":
        trained["scales"] = layer.scales

    def function(*tensors):
        return call(layer._replace(**dict(zip(trained, tensors, strict=True))), plan=plan)

    assert torch.autograd.gradcheck(function, [tensor.requires_grad_() for tensor in trained.values()])


def as_matrices(cores):
    """Cores of any shape as dense matrices."""
    return torch.block_diag(*cores) if cores.ndim == 3 else cores if cores.ndim == 2 else torch.diag(cores)


@pytest.mark.parametrize("core", CORES)
def test_every_core_is_a_matrix(core):
    """Blocks and diagonals are the dense cores that they stand for, for one adapter and for several."""
    for uses in ("one", "rows", "mixed"):
        layer = problem(30, 5, 6, 6, uses=uses, core=core, dtype=torch.float64, device=CPU)
        cores = layer.deltas[None] if uses == "one" else layer.deltas
        dense = torch.stack([as_matrices(each) for each in cores])
        for plan in ("reference", "factored"):
            expected = call(layer._replace(deltas=dense[0] if uses == "one" else dense), plan=plan)
            torch.testing.assert_close(call(layer, plan=plan), expected)
            for width in (1, 6):
                if width == 1 and core != "diagonal":
                    continue
                blocks = layer.deltas[..., None, None] if width == 1 else dense[:, None]
                blocks = blocks[0] if width == 6 and uses == "one" else blocks
                torch.testing.assert_close(call(layer._replace(deltas=blocks), plan=plan), expected)


def test_the_product_with_a_core():
    generator = torch.Generator().manual_seed(0)
    values = torch.randn(2, 3, 6, generator=generator, dtype=torch.float64, requires_grad=True)
    for shape in ((6,), (6, 6), (3, 2, 2)):
        core = torch.randn(shape, generator=generator, dtype=torch.float64, requires_grad=True)
        torch.testing.assert_close(core_product(values, core), values @ as_matrices(core).T)
        assert torch.autograd.gradcheck(core_product, (values, core))
        assert core_product(values.bfloat16(), core.float()).dtype == torch.bfloat16


@pytest.mark.parametrize("adapters", [1, 3, 40, 4000])
@pytest.mark.parametrize("skewed", [False, True])
def test_adapters_with_few_rows_and_with_many(adapters, skewed):
    """Whatever the lists of rows are that adapters have, grouped products are those of gathered cores."""
    layer = problem(200, 5, 6, 6, uses="mixed", core="blocks", adapters=adapters, dtype=torch.float64, device=CPU)
    if skewed:
        index = torch.where(torch.arange(200)[:, None] < 150, 0, layer.index)
        layer = layer._replace(index=index)
    gradient = torch.randn(200, 5, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    found = values_and_gradients(layer, gradient, plan="factored")
    torch.testing.assert_close(found, oracle(layer, gradient), rtol=1e-10, atol=1e-10)
    assert torch.equal(found["deltas"], values_and_gradients(layer, gradient, plan="factored")["deltas"])


def test_the_definition_is_the_formula():
    layer = problem(4, 5, 6, 3, dtype=torch.float64, device=CPU)
    weight = layer.weight + layer.left @ torch.diag(layer.deltas) @ layer.right
    torch.testing.assert_close(call(layer, plan="reference"), layer.x @ weight.T + layer.bias)
    update = ldu_update(layer.x, layer.left, layer.right, layer.deltas)
    torch.testing.assert_close(update, layer.x @ (weight - layer.weight).T)


@settings(max_examples=40, deadline=None)
@given(m=st.integers(1, 30), n=st.integers(1, 30), tokens=st.integers(0, 40), seed=st.integers(0, 99))
def test_packed(m, n, tokens, seed):
    # Small blocks, so that sizes are odd ones of several.
    with mock.patch.object(packed, "BLOCK", 4), mock.patch.object(packed, "_ROWS", 8):
        generator = torch.Generator().manual_seed(seed)
        weight = torch.randn(m, n, generator=generator, dtype=torch.float64)
        factors = ldu(weight)
        rank = factors.rank
        layer = problem(tokens, m, n, rank, dtype=torch.float64, seed=seed, device=CPU)
        layer = layer._replace(weight=weight, left=factors.left, right=factors.right)
        packing = pack(weight, factors.left, factors.right, factors.diagonal, factors.permutation[:rank])
        gradient = torch.randn(tokens, m, generator=generator, dtype=torch.float64)
        results = values_and_gradients(layer, gradient, plan="packed", packing=packing)
        expected = oracle(layer, gradient)
        # As well conditioned as the factors are: entries of D L^-1 that are large cancel in their product.
        growth = float(factors.left.norm() * factors.diagonal.abs().max() * factors.right.norm() / weight.norm())
        for name, value in results.items():
            limit = 1e-13 * max(growth, 1.0) * max(float(expected[name].abs().max()) if tokens else 1.0, 1.0)
            torch.testing.assert_close(value, expected[name], rtol=0, atol=limit)


class TestPack:
    def factors(self):
        weight = torch.randn(5, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        return weight, ldu(weight)

    def test_refuses_other_weights_and_orders(self):
        weight, factors = self.factors()
        rows = factors.permutation[:4]
        with pytest.raises(ValueError, match="differs from weight by"):
            pack(weight * 1.01, factors.left, factors.right, factors.diagonal, rows)
        with pytest.raises(ValueError, match="not trapezoidal at these pivots"):
            pack(weight, factors.left, factors.right, factors.diagonal, rows.flip(0))
        with pytest.raises(ValueError, match="a row twice"):
            pack(weight, factors.left, factors.right, factors.diagonal, rows[[0, 0, 1, 2]])
        with pytest.raises(ValueError, match="reach from 0 to 7; accepted: rows 0 to 4"):
            pack(weight, factors.left, factors.right, factors.diagonal, torch.tensor([0, 1, 2, 7]))
        with pytest.raises(ValueError, match="of a weight .* at full rank"):
            pack(weight, factors.left[:, :2], factors.right[:2], factors.diagonal[:2], rows[:2])
        with pytest.raises(TypeError, match="bfloat16; accepted: float32, float64"):
            pack(weight.bfloat16(), factors.left, factors.right, factors.diagonal, rows)

    def test_singular_and_zero(self):
        for weight in (torch.zeros(4, 4), torch.ones(4, 3), torch.tensor([[0.0, 1.0], [0.0, 0.0]])):
            factors = ldu(weight)
            packing = pack(weight, factors.left, factors.right, factors.diagonal, factors.permutation[: factors.rank])
            x = torch.randn(3, weight.shape[1])
            delta = torch.zeros(factors.rank)
            y = ldu_linear(x, weight, None, factors.left, factors.right, delta, plan="packed", packing=packing)
            torch.testing.assert_close(y, x @ weight.T)


@pytest.mark.parametrize("plan", ["factored", "hybrid"])
def test_the_projection_is_kept_and_not_x(plan):
    layer = problem(50, 30, 40, 8, device=CPU)
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: kept.append(tensor) or tensor, lambda tensor: tensor):
        x, delta = layer.x.requires_grad_(), layer.deltas.requires_grad_()
        ldu_linear(x, *layer[1:5], delta, plan=plan)
    constants = {tensor.data_ptr() for tensor in (*layer[1:5], delta)}
    assert [tuple(tensor.shape) for tensor in kept if tensor.data_ptr() not in constants] == [(50, 8)]


def test_zero_delta_is_the_frozen_layer_bit_for_bit():
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        layer = problem(33, 20, 30, 8, dtype=dtype, device=CPU)
        base = torch.nn.functional.linear(*layer[:3])
        for plan in ("reference", "factored", "hybrid", "materialized"):
            assert torch.equal(call(layer._replace(deltas=torch.zeros(8)), plan=plan), base)


@pytest.mark.parametrize("core", CORES)
@pytest.mark.parametrize("plan", ["reference", "factored"])
class TestRows:
    def test_leading_dimensions(self, plan, core):
        layer = problem(24, 7, 9, 4, uses="rows", core=core, device=CPU)
        x, index = layer.x.reshape(2, 3, 4, 9), torch.tensor([[0, 1, 2], [3, 4, 0]])
        y = ldu_linear_multi(x, *layer[1:6], index, plan=plan)
        everywhere = ldu_linear_multi(x, *layer[1:6], index[..., None].expand(2, 3, 4), plan=plan)
        assert y.shape == (2, 3, 4, 7)
        torch.testing.assert_close(y, everywhere)
        for row in range(2):
            one = ldu_linear(x[row, 1], *layer[1:5], layer.deltas[index[row, 1]])
            torch.testing.assert_close(y[row, 1], one)

    def test_a_mix_is_the_sum(self, plan, core):
        layer = problem(6, 7, 9, 4, uses="mixed", core=core, device=CPU)
        y = call(layer, plan=plan)
        for row in range(6):
            delta = torch.einsum("s,s...->...", layer.scales[row], layer.deltas[layer.index[row]])
            torch.testing.assert_close(y[row], ldu_linear(layer.x[row], *layer[1:5], delta))

    def test_unchecked_unknown_adapters_are_nan(self, plan, core):
        layer = problem(4, 7, 9, 4, uses="rows", core=core, device=CPU)
        deltas = layer.deltas.requires_grad_()
        index = torch.tensor([0, 5, -1, 4])
        y = ldu_linear_multi(layer.x, *layer[1:5], deltas, index, plan=plan, check_values=False)
        assert y.isnan().all(dim=1).tolist() == [False, True, True, False]
        y[[0, 3]].sum().backward()
        assert not deltas.grad.isnan().any()
        assert (deltas.grad.flatten(1).abs().sum(dim=1) > 0).tolist() == [True, False, False, False, True]


def test_layouts():
    layer = problem(12, 10, 14, 5, device=CPU)
    expected = call(layer)
    strided = layer._replace(
        x=layer.x.T.contiguous().T,
        weight=layer.weight.T.contiguous().T,
        left=torch.stack([layer.left, layer.left], dim=-1)[..., 0],
        right=layer.right.flip(1).contiguous().flip(1),
    )
    for plan in ("reference", "factored", "hybrid", "materialized"):
        torch.testing.assert_close(call(strided, plan=plan), expected)
