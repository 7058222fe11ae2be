"""The Triton kernels, interpreted where there is no GPU, against the definition in float64."""

import pytest
import torch
from half_precision import assert_within, gamma
from hypothesis import given, settings
from hypothesis import strategies as st
from layer_problems import (
    CORES,
    DEVICE,
    USES,
    assert_close,
    call,
    problem,
    skeleton_problem,
    values_and_gradients,
)

from lowrank_ldu.kernels import skeleton_plan
from lowrank_ldu.kernels.call import Adapters, Layer
from lowrank_ldu.kernels.core_gradients import adapter_gradients
from lowrank_ldu.kernels.cores import apply_cores, as_blocks

launch = pytest.importorskip("lowrank_ldu.kernels.triton_kernels.launch", reason="triton is not installed")
block_launch = pytest.importorskip("lowrank_ldu.kernels.triton_kernels.block_launch")

DTYPES = [torch.float32, torch.float16] + ([torch.bfloat16] if DEVICE.type == "cuda" else [])


@pytest.fixture(autouse=True)
def _unwritten_output_is_nan(monkeypatch):
    """Memory that the kernels are to write starts as NaN, so that what they leave out shows."""
    new_empty = torch.Tensor.new_empty

    def filled(self, *size, **options):
        tensor = new_empty(self, *size, **options)
        return tensor.fill_(float("nan")) if tensor.is_floating_point() else tensor

    monkeypatch.setattr(torch.Tensor, "new_empty", filled)


# T, m, n, r: none a multiple of a block; few rows (one launch) and many (two), ranks beyond one block of terms.
SHAPES = [(1, 5, 7, 3), (16, 33, 70, 20), (17, 65, 34, 34), (100, 40, 41, 17), (3, 160, 150, 140), (33, 150, 160, 150)]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("uses", USES)
@pytest.mark.parametrize("shape", SHAPES)
def test_values_and_gradients(shape, uses, dtype):
    layer = problem(*shape, uses=uses, dtype=dtype)
    gradient = torch.randn(shape[0], shape[1], generator=torch.Generator().manual_seed(1)).to(DEVICE, dtype)
    for upper in (False, True):
        assert_close(values_and_gradients(layer, gradient, plan="triton", upper=upper), layer, gradient, dtype)


@settings(max_examples=25, deadline=None)
@given(
    tokens=st.integers(0, 40),
    m=st.integers(1, 50),
    n=st.integers(1, 50),
    rank=st.integers(1, 50),
    uses=st.sampled_from(USES),
    bias=st.booleans(),
    seed=st.integers(0, 99),
)
def test_any_shape(tokens, m, n, rank, uses, bias, seed):
    layer = problem(tokens, m, n, min(rank, m, n), uses=uses, bias=bias, seed=seed)
    gradient = torch.randn(tokens, m, generator=torch.Generator().manual_seed(seed)).to(DEVICE)
    results = values_and_gradients(layer, gradient, plan="triton", upper=True)
    assert_close(results, layer, gradient, torch.float32)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("uses", USES)
@pytest.mark.parametrize("core", ["dense", "blocks"])
def test_cores(core, uses, dtype):
    """Blocks are applied between the projection and the expansion, on both ways."""
    for shape in ((5, 20, 21, 6), (18, 20, 21, 9)):
        layer = problem(*shape, uses=uses, core=core, dtype=dtype)
        gradient = torch.randn(shape[0], shape[1], generator=torch.Generator().manual_seed(1)).to(DEVICE, dtype)
        assert_close(values_and_gradients(layer, gradient, plan="triton"), layer, gradient, dtype)


@pytest.mark.parametrize("tokens", [5, 40])
def test_layouts(tokens):
    layer = problem(tokens, 35, 37, 20)
    strided = layer._replace(
        x=layer.x.T.contiguous().T,
        weight=layer.weight.T.contiguous().T,
        left=torch.stack([layer.left, layer.left], dim=-1)[..., 0],
        right=torch.nn.functional.pad(layer.right, (3, 4))[:, 3:-4],
    )
    gradient = torch.randn(35, tokens, generator=torch.Generator().manual_seed(1)).to(DEVICE).T
    results = values_and_gradients(strided, gradient, plan="triton")
    assert_close(results, layer, gradient, torch.float32)


def test_zero_blocks_of_upper_are_not_read():
    """What lies in whole blocks left of the diagonal may be anything: NaN there does not reach the result."""
    layer = problem(40, 96, 160, 150)
    gradient = torch.randn(40, 96, generator=torch.Generator().manual_seed(1)).to(DEVICE)
    spoiled = layer.right.clone()
    spoiled[128:, :96] = float("nan")  # terms from 128 on are the projection's second block of terms
    forward, _ = launch.project(layer.x, spoiled, upper=True)
    assert not forward.isnan().any()
    spoiled = layer.right.clone()
    spoiled[64:, :32] = float("nan")  # the expansion's later blocks of terms, and its first columns
    if DEVICE.type == "cpu":  # on a GPU the tuned block of columns may be wider
        _, product = launch.project(gradient, layer.left.T, upper=False, other=forward)
        expanded, _ = launch.project(gradient, layer.left.T, upper=False)
        transposed = Layer(layer.weight.T, None, spoiled.T, layer.left.T, upper=True)
        dx = launch.expand(gradient, transposed, expanded, Adapters(layer.deltas[None]))
        assert_close({"x": dx, "deltas": product.sum(dim=0)}, layer, gradient, torch.float32)


def test_unknown_adapters_are_nan_and_read_nothing():
    for tokens in (4, 20):
        layer = problem(tokens, 18, 9, 3, uses="rows")
        index = layer.index.clone()
        index[1], index[2] = 5, -(2**40)
        deltas = layer.deltas.clone().requires_grad_()
        y = call(layer._replace(index=index, deltas=deltas), plan="triton", check_values=False)
        assert y.isnan().all(dim=1).nonzero()[:, 0].tolist() == [1, 2]
        kept = [row for row in range(tokens) if row not in (1, 2)]
        y[kept].sum().backward()
        assert not deltas.grad.isnan().any()


class TestBlocks:
    def problem(self, tokens, rank, core, adapters=3):
        layer = problem(tokens, 9, 11, rank, uses="mixed", core=core, adapters=adapters)
        return Adapters(as_blocks(layer.deltas), layer.index, layer.scales)

    @pytest.mark.parametrize(("rank", "core"), [(6, "blocks"), (20, "dense"), (70, "dense")])
    def test_products_and_sums(self, rank, core):
        """Blocks smaller and larger than what a program takes at a time."""
        adapters = self.problem(9, rank, core)
        generator = torch.Generator().manual_seed(0)
        values, other = (torch.randn(9, rank, generator=generator).to(DEVICE) for _ in range(2))
        close = {"rtol": 1e-5, "atol": 1e-4}  # sums of some hundred terms of about 1
        for transposed in (False, True):
            found = block_launch.row_core_product(values, adapters, transposed=transposed)
            torch.testing.assert_close(found, apply_cores(values, adapters, transposed=transposed), **close)
        found = block_launch.block_gradients(values, other, adapters, need_cores=True, need_scales=True)
        expected = adapter_gradients(values.clone(), other, adapters, need_cores=True, need_scales=True)
        torch.testing.assert_close(found, expected, **close)
        again = block_launch.outer_sums(values, other, adapters)
        assert torch.equal(found[0], again)

    def test_unknown_adapters_are_nan_and_read_nothing(self):
        adapters = self.problem(6, 4, "dense")
        index = torch.zeros(6, 1, dtype=torch.int64, device=DEVICE)
        index[1], index[2] = 3, -(2**40)
        adapters = Adapters(adapters.cores, index)
        values = torch.ones(6, 4, device=DEVICE)
        product = block_launch.row_core_product(values, adapters)
        assert product.isnan().all(dim=1).tolist() == [False, True, True, False, False, False]
        assert not block_launch.outer_sums(values, values, adapters).isnan().any()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("core", CORES)
@pytest.mark.parametrize("shape", [(5, 20, 21, 6), (20, 40, 35, 20)])
def test_skeletons(shape, core, dtype, monkeypatch):
    """The plan's own fused kernel, on both ways, against the plan in plain torch: the same but for rounding."""
    layer, skeleton = skeleton_problem(*shape, core=core, dtype=dtype)
    gradient = torch.randn(shape[0], shape[1], generator=torch.Generator().manual_seed(1)).to(DEVICE, dtype)
    launched = []
    update = block_launch.skeleton_update
    monkeypatch.setattr(block_launch, "skeleton_update", lambda *arguments: launched.append(True) or update(*arguments))
    results = []
    for fused in (False, True):
        monkeypatch.setattr(skeleton_plan, "_fused", lambda *_, fused=fused: fused)
        results.append(values_and_gradients(layer, gradient, plan="skeleton", skeleton=skeleton))
    assert launched == [True, True]
    tolerance = 50 * skeleton.amplification * torch.finfo(dtype).eps
    torch.testing.assert_close(*results, rtol=tolerance, atol=tolerance)


class TestSegmentSum:
    def test_splits_of_a_long_list(self):
        generator = torch.Generator().manual_seed(0)
        product = torch.randn(3000, 5, generator=generator).to(DEVICE)
        index = torch.randint(0, 3, (3000, 1), generator=generator).to(DEVICE)
        index[index == 1] = 2  # an adapter that no row uses
        total = launch.segment_sum(product, 3, index, None)
        expected = torch.zeros(3, 5, dtype=torch.float64).index_add_(0, index[:, 0].cpu(), product.double().cpu())
        unsigned = torch.zeros_like(expected).index_add_(0, index[:, 0].cpu(), product.double().cpu().abs())
        assert_within(total.cpu(), expected, gamma(3000, total.dtype) * unsigned)
        assert torch.equal(total, launch.segment_sum(product, 3, index, None))

    def test_nothing(self):
        assert launch.segment_sum(
            torch.zeros(0, 5, device=DEVICE), 3, torch.zeros(0, 1, device=DEVICE).long(), None
        ).shape == (3, 5)


@pytest.mark.parametrize("tokens", [4, 40])
def test_no_gradient_of_x(tokens):
    layer = problem(tokens, 20, 30, 6)
    delta = layer.deltas.requires_grad_()
    call(layer._replace(deltas=delta), plan="triton").sum().backward()
    assert_close({"deltas": delta.grad}, layer, torch.ones(tokens, 20, device=DEVICE), torch.float32)
