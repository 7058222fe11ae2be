"""The layer: what it computes, what it leaves alone, what its parameters' gradients are."""

import copy

import numpy as np
import pytest
import torch
from half_precision import (
    assert_as_near,
    assert_reloaded,
    assert_within,
    gamma,
    references,
    roundings,
    without_signs,
)
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from lowrank_ldu.decomposition import PIVOTING, ldu
from lowrank_ldu.kernels import ldu_update
from lowrank_ldu.nn import INITIALIZATIONS, LDULayer

DTYPES = [torch.float32, torch.float64, torch.float16, torch.bfloat16]


def trained(layer, seed=1):
    """The layer with parameters as training may leave them."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        layer.offset.copy_(torch.randn(layer.rank, generator=generator) * 0.3)
        layer.sigma.mul_(0.8)
    return layer


def dense_update(layer):
    """sigma P L diag(z) U - sigma_0 P L diag(z_ref) U in float64, from the weight itself."""
    factors = ldu(layer.base_layer.weight.double(), layer.rank, pivoting=layer.factors.options.pivoting)
    start = layer.adapter.initial_diagonal.double()
    reference = start if layer.options.preserving else factors.diagonal
    z = start + layer.offset.double()
    sigma, sigma_0 = layer.sigma.double(), layer.options.alpha / layer.rank
    return (factors.left * (sigma * z - sigma_0 * reference)) @ factors.right


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("init", INITIALIZATIONS)
@pytest.mark.parametrize("bias", [True, False])
def test_step_0_is_the_base_layer_bit_for_bit(dtype, init, bias):
    base = nn.Linear(24, 18, bias=bias).to(dtype)
    x = torch.randn(5, 24).to(dtype)
    layer = LDULayer(base, 7, alpha=3, init=init)
    assert torch.equal(layer(x), base(x))
    assert layer(x).dtype == dtype


@pytest.mark.parametrize("init", INITIALIZATIONS)
def test_algorithm_1_changes_the_model_unless_z_starts_at_the_factorization(init):
    base = nn.Linear(24, 18)
    x = torch.randn(5, 24)
    layer = LDULayer(base, 7, init=init, preserving=False)
    assert torch.equal(layer(x), base(x)) == (init == "regular_ldu")
    # Phase 3 computes the residual from D_r, phase 4 overwrites D_r: W0 - sigma_0 P L (D_r - z_init) U.
    factors = ldu(base.weight, 7)
    weight = base.weight - (factors.left * (factors.diagonal - layer.adapter.initial_diagonal)) @ factors.right
    # Both sides round what they sum up; the update that phase 4 makes is the one without signs.
    allowed = 2 * gamma(roundings(layer), x.dtype) * without_signs(layer, x)
    assert_within(layer(x), nn.functional.linear(x, weight, base.bias), allowed)


@given(
    st.integers(1, 12), st.integers(1, 12), st.sampled_from(PIVOTING), st.sampled_from(INITIALIZATIONS), st.booleans(),
    st.data(),
)  # fmt: skip
def test_output_is_that_of_the_dense_formula(m, n, pivoting, init, preserving, data):
    base = nn.Linear(n, m).double()
    rank = data.draw(st.integers(1, min(m, n)))
    layer = trained(LDULayer(base, rank, alpha=rank / 2, init=init, preserving=preserving, pivoting=pivoting))
    x = torch.randn(3, n, dtype=torch.float64)
    update = dense_update(layer)
    expected = base(x) + x @ update.T
    scale = 1 + update.abs().max().item() * n
    torch.testing.assert_close(layer(x), expected, atol=1e-9 * scale, rtol=1e-9)
    torch.testing.assert_close(layer.delta_weight(), update, atol=1e-9 * scale, rtol=1e-9)


def test_leading_dimensions_are_kept():
    layer = trained(LDULayer(nn.Linear(6, 4), 3))
    x = torch.randn(2, 3, 5, 6)
    assert layer(x).shape == (2, 3, 5, 4)
    torch.testing.assert_close(layer(x)[1, 2], layer(x[1, 2]))
    assert layer(x[:0]).shape == (0, 3, 5, 4)


@pytest.mark.parametrize("preserving", [True, False])
def test_gradients_in_float64(preserving):
    layer = trained(LDULayer(nn.Linear(6, 5).double(), 4, alpha=2, init="normal_0_1", preserving=preserving))
    x = torch.randn(3, 6, dtype=torch.float64, requires_grad=True)

    def output(x, offset, sigma):
        return torch.func.functional_call(layer, {"adapter.offset": offset, "adapter.sigma": sigma}, (x,))

    offset, sigma = (p.detach().clone().requires_grad_() for p in (layer.offset, layer.sigma))
    assert torch.autograd.gradcheck(output, (x, offset, sigma))
    assert torch.autograd.gradgradcheck(output, (x, offset, sigma))


def test_gradient_of_the_reference_path_in_float64():
    shapes = [(3, 6), (5, 4), (4, 6), (4,)]
    x, left, right, delta = (torch.randn(shape, dtype=torch.float64) for shape in shapes)
    x.requires_grad_()
    delta.requires_grad_()
    assert torch.autograd.gradcheck(lambda x, delta: ldu_update(x, left, right, delta), (x, delta))


def test_gradient_does_not_depend_on_z_in_the_preserving_form():
    """dLoss/dz at step 0 is the same for every initialization: the start of z acts through sigma only."""
    base = nn.Linear(24, 18)
    x, target = torch.randn(32, 24), torch.randn(32, 18)
    gradients = []
    for init in INITIALIZATIONS:
        layer = LDULayer(copy.deepcopy(base), 7, init=init, seed=3)
        nn.functional.mse_loss(layer(x), target).backward()
        gradients.append((layer.offset.grad, layer.sigma.grad))
    for gradient, _ in gradients[1:]:
        assert torch.equal(gradient, gradients[0][0])
    assert len({float(sigma) for _, sigma in gradients}) > 2
    # In the other form the model itself differs, and the gradient with it.
    other = LDULayer(copy.deepcopy(base), 7, init="ones", preserving=False)
    nn.functional.mse_loss(other(x), target).backward()
    assert not torch.allclose(other.offset.grad, gradients[0][0])


def test_saved_for_backward_is_r_numbers_a_token():
    """Autograd keeps x right^T (T x r) for the adapter, not x (T x n)."""
    layer = LDULayer(nn.Linear(50, 40), 3)
    x = torch.randn(20, 50, requires_grad=True)
    sizes = []

    def pack(tensor):
        sizes.append(tuple(tensor.shape))
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        ldu_update(x, layer.factors.left, layer.factors.right, layer.delta)
    assert (20, 50) not in sizes
    assert (20, 3) in sizes


@pytest.mark.parametrize("dtype", DTYPES)
def test_base_is_untouched_by_training_and_restored_by_unmerge_bit_for_bit(dtype):
    base = nn.Linear(24, 18).to(dtype)
    weight, bias = base.weight.detach().clone(), base.bias.detach().clone()
    layer = LDULayer(base, 7)
    optimizer = torch.optim.AdamW([p for p in layer.parameters() if p.requires_grad], lr=0.1, weight_decay=0.1)
    x = torch.randn(16, 24).to(dtype)
    for _ in range(3):
        optimizer.zero_grad()
        layer(x).float().square().mean().backward()
        optimizer.step()
    assert torch.equal(base.weight, weight)
    assert torch.equal(base.bias, bias)
    before = layer(x)
    if dtype == torch.float64:
        allowed = 2 * gamma(roundings(layer), dtype) * without_signs(layer, x)
    else:
        near = references(layer, base, x)
        assert_as_near(before, *near)
    layer.merge()
    assert layer.merged
    assert not torch.equal(base.weight, weight)
    if dtype == torch.float64:
        assert_within(layer(x), before, allowed)
    else:
        assert_as_near(layer(x), *near)
    layer.unmerge()
    assert torch.equal(base.weight, weight)
    assert torch.equal(layer(x), before)


def test_merging_twice_unmerging_too_early_and_without_the_base():
    layer = trained(LDULayer(nn.Linear(5, 4), 2))
    with pytest.raises(RuntimeError, match="not merged"):
        layer.unmerge()
    layer.merge(keep_base=False)
    with pytest.raises(RuntimeError, match="merged already"):
        layer.merge()
    with pytest.raises(RuntimeError, match="base weight was not kept"):
        layer.unmerge()
    with pytest.raises(RuntimeError, match="pass the merged weight off as the base"):
        layer.state_dict()


def test_terms_out_of_float16s_range_are_kept_in_range():
    """Rows of U beyond 65,504 would be infinite in float16; the diagonal takes their scale."""
    weight = torch.tensor([[2.0**-13, 1.0], [2.0**-13, -1.0]]).repeat(1, 2)
    weight[:, 2:] *= 100
    base = nn.Linear(4, 2, bias=False)
    with torch.no_grad():
        base.weight.copy_(weight)
    base = base.half()
    assert ldu(base.weight).right.abs().max() > 65504
    layer = LDULayer(base, 2)
    with torch.no_grad():
        layer.offset.copy_(layer.adapter.initial_diagonal / 2)
    assert layer.factors.left.isfinite().all()
    assert layer.factors.right.isfinite().all()
    x = torch.eye(4).half()
    expected = (base.weight.double() + dense_update(layer)).T
    # The projection is of one number of each input: that leaves its other roundings for those of both factors.
    allowed = gamma(roundings(layer), torch.float16) * without_signs(layer, x).double()
    assert_within(layer(x), expected, allowed)


def test_float16_input_as_large_as_it_gets_along_a_row_of_u():
    """U x must not overflow where x does not: infinity times a delta of zero would be NaN."""
    base = nn.Linear(2048, 64, bias=False).half()
    layer = LDULayer(base, 64)
    for row in layer.factors.right[::16]:
        x = (600 * torch.sign(row.float())).half()[None]
        assert base(x).isfinite().all()
        assert torch.equal(layer(x), base(x))


def test_a_default_device_does_not_matter():
    """Neither for what is computed nor for what later calls reuse."""
    base = nn.Linear(12, 10)
    with torch.device("meta"):
        layer = LDULayer(base, 4, init="normal_0_1")
    x = torch.randn(3, 12)
    assert torch.equal(layer(x), base(x))
    assert torch.equal(ldu(base.weight, 4).left, layer.factors.left)


def test_state_dict_holds_no_factors_and_restores_the_layer_whatever_a_new_search_would_find():
    base = nn.Linear(12, 10)
    layer = trained(LDULayer(base, 4, pivoting="complete", init="uniform_minus1_1"))
    state = copy.deepcopy(layer.state_dict())
    assert set(state) == {
        "_extra_state", "base_layer.weight", "base_layer.bias", "adapter.offset", "adapter.sigma",
        "adapter.initial_sigma", "adapter.initial_diagonal", "adapter.pivot_rows", "adapter.pivot_columns",
        "adapter.base_sample",
    }  # fmt: skip
    # Other pivots, another base, another start and other options: all of it is what the state says afterwards.
    other = LDULayer(nn.Linear(12, 10), 4, alpha=9, pivoting="rook", init="ones", preserving=False, seed=9)
    other.load_state_dict(state)
    x = torch.randn(6, 12)
    assert_reloaded(other, layer, LDULayer(nn.Linear(12, 10).double(), 4), x)
    assert other.options == layer.options


@pytest.mark.parametrize("preserving", [True, False])
def test_a_state_dict_that_went_through_safetensors(tmp_path, preserving):
    from safetensors.torch import load_file, save_file

    layer = trained(LDULayer(nn.Linear(12, 10), 4, alpha=2, init="zeros", preserving=preserving))
    save_file(layer.state_dict(), tmp_path / "state.safetensors")
    other = LDULayer(nn.Linear(12, 10), 4)
    other.load_state_dict(load_file(tmp_path / "state.safetensors"))
    x = torch.randn(6, 12)
    assert_reloaded(other, layer, LDULayer(nn.Linear(12, 10).double(), 4), x)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_casting_the_layer_keeps_it_the_base_layer_at_step_0(dtype):
    layer = LDULayer(nn.Linear(12, 10), 3, alpha=1, init="normal_zmean_zstd").to(dtype)
    x = torch.randn(4, 12).to(dtype)
    assert torch.equal(layer(x), layer.base_layer(x))


def test_autocast():
    layer = trained(LDULayer(nn.Linear(12, 10), 3))
    x = torch.randn(4, 12)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y, plain = layer(x), layer.base_layer(x)
    assert y.dtype == torch.bfloat16
    assert_as_near(y, layer(x), plain, layer.base_layer(x))


@pytest.mark.parametrize("init", INITIALIZATIONS)
def test_deepcopy_and_pickle(init, tmp_path):
    layer = trained(LDULayer(nn.Linear(12, 10), 3, init=init))
    x = torch.randn(4, 12)
    assert torch.equal(copy.deepcopy(layer)(x), layer(x))
    torch.save(layer, tmp_path / "layer.pt")
    assert torch.equal(torch.load(tmp_path / "layer.pt", weights_only=False)(x), layer(x))


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: LDULayer(nn.LayerNorm(4), 1), TypeError, "the layer is a LayerNorm; accepted: nn.Linear"),
        (lambda: LDULayer(nn.Linear(4, 3), 0), ValueError, "rank is 0; accepted: an integer from 1 on"),
        (lambda: LDULayer(nn.Linear(4, 3), 4), ValueError, "rank is 4; accepted: an integer from 1 to 3"),
        (lambda: LDULayer(nn.Linear(4, 3), 2, alpha=0), ValueError, "alpha is 0; accepted: a positive finite"),
        (lambda: LDULayer(nn.Linear(4, 3), 2, alpha=float("nan")), ValueError, "alpha is nan"),
        (lambda: LDULayer(nn.Linear(4, 3), 2, alpha="1"), TypeError, "alpha is '1'"),
        (
            lambda: LDULayer(nn.Linear(4, 3), 2, init="random"),
            ValueError,
            "init is 'random'; accepted: 'regular_ldu'",
        ),
        (lambda: LDULayer(nn.Linear(4, 3), 2, pivoting="none"), ValueError, "pivoting is 'none'"),
        (lambda: LDULayer(nn.Linear(4, 3, device="meta"), 2), ValueError, "on the meta device"),
        (
            lambda: LDULayer(nn.Linear(4, 3), factors=ldu(torch.eye(3))),
            ValueError,
            r"factors are of a matrix \(3, 3\)",
        ),
        (
            lambda: LDULayer(nn.Linear(3, 3), 2, factors=ldu(torch.eye(3))),
            ValueError,
            "factors has rank 3 and rank is 2",
        ),
        (lambda: LDULayer(nn.Linear(3, 3), factors=ldu(np.eye(3))), TypeError, "accepted: an LDU of torch tensors"),
    ],
)
def test_bad_options(make, error, message):
    with pytest.raises(error, match=message):
        make()


def test_a_weight_that_is_not_finite():
    base = nn.Linear(4, 3)
    with torch.no_grad():
        base.weight[1, 2] = torch.nan
    with pytest.raises(
        ValueError, match=r"base_layer\.weight holds 1 entries that are not finite, the first at \(1, 2\)"
    ):
        LDULayer(base, 2)
