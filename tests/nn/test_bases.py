"""Bases and coordinates of the diagonal: what they are, and what they buy."""

import copy
import io

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from minilm import checkpoint
from safetensors import safe_open
from torch import nn

from lowrank_ldu.nn import BASES, INITIALIZATIONS, PARAMETRIZATIONS, LoLDULayer, project_
from lowrank_ldu.nn.coordinates import coordinates_of, from_diagonal, to_diagonal
from lowrank_ldu.nn.factors import FactorOptions, Factors, sample_deviation


def linear(weight):
    layer = nn.Linear(weight.shape[1], weight.shape[0], bias=False, dtype=weight.dtype)
    with torch.no_grad():
        layer.weight.copy_(weight)
    return layer


def minilm(name):
    with safe_open(checkpoint(), "pt") as file:
        return file.get_tensor(name)


def test_the_svd_basis_holds_the_best_terms():
    weight = torch.randn(24, 18, dtype=torch.float64)
    factors = LoLDULayer(linear(weight), 5, basis="svd").factors
    kept = (factors.left * (factors.diagonal * factors.scale)) @ factors.right
    u, s, vt = np.linalg.svd(weight.numpy())
    np.testing.assert_allclose(kept.numpy(), (u[:, :5] * s[:5]) @ vt[:5], atol=1e-10)


def test_the_random_basis_depends_on_the_seed_alone_and_its_diagonal_is_the_best():
    weights = torch.randn(2, 24, 18, dtype=torch.float64)
    first, second = (LoLDULayer(linear(weight), 5, basis="random", seed=3).factors for weight in weights)
    assert torch.equal(first.left, second.left)
    assert not torch.equal(first.left, LoLDULayer(linear(weights[0]), 5, basis="random", seed=4).factors.left)
    identity = torch.eye(5, dtype=torch.float64)
    torch.testing.assert_close(first.left.T @ first.left, identity)
    right = first.right * first.scale[:, None]
    terms = torch.stack([torch.outer(*term) for term in zip(first.left.T, right, strict=True)])
    best = torch.linalg.lstsq(terms.flatten(1).T, weights[0].flatten()).solution
    torch.testing.assert_close(first.diagonal, best)


@pytest.mark.parametrize("init", INITIALIZATIONS)
@pytest.mark.parametrize("parametrization", PARAMETRIZATIONS)
@pytest.mark.parametrize("basis", BASES)
def test_a_state_dict_restores_any_of_them(basis, parametrization, init):
    torch.manual_seed(0)
    base = nn.Linear(20, 16)
    layer = LoLDULayer(base, 6, basis=basis, parametrization=parametrization, init=init, seed=2)
    assert sum(p.numel() for p in layer.parameters() if p.requires_grad) == 7
    with torch.no_grad():
        layer.offset.normal_(std=0.1)
    other = LoLDULayer(nn.Linear(20, 16), 6)
    other.load_state_dict(copy.deepcopy(layer.state_dict()))
    assert other.options == layer.options
    torch.testing.assert_close(other.delta_weight(), layer.delta_weight(), atol=1e-4, rtol=1e-4)


def is_hard(left, right):
    """Condition of the terms' unit Gram matrix, which tolerances have to follow."""
    return float(torch.linalg.cond((left.T @ left) * (right @ right.T)))


@given(st.integers(2, 20), st.integers(2, 20), st.integers(0, 2**32), st.data())
def test_gram_coordinates_are_orthonormal_in_the_weight(m, n, seed, data):
    rank = data.draw(st.integers(1, min(m, n)))
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(m, n, generator=generator, dtype=torch.float64)
    layer = LoLDULayer(linear(weight), rank, parametrization="gram")
    w = torch.randn(rank, generator=generator, dtype=torch.float64)
    with torch.no_grad():
        layer.offset.copy_(w)
    # One Cholesky factor in float64: relative errors of about cond(G) eps.
    tolerance = 1e-12 * is_hard(layer.factors.left, layer.factors.right * layer.factors.scale[:, None])
    torch.testing.assert_close(layer.delta_weight().norm(), w.norm(), atol=0, rtol=max(tolerance, 1e-12))


def test_the_gradient_in_gram_coordinates_is_the_natural_gradient():
    weight = torch.randn(18, 14, dtype=torch.float64)
    x, target = torch.randn(30, 14, dtype=torch.float64), torch.randn(30, 18, dtype=torch.float64)
    slopes = {}
    for parametrization in ("diagonal", "gram"):
        layer = LoLDULayer(linear(weight), 6, parametrization=parametrization)
        (layer(x) - target).square().sum().backward()
        slopes[parametrization] = layer.offset.grad
    factors = LoLDULayer(linear(weight), 6).factors
    right = factors.right * factors.scale[:, None]
    gram = (factors.left.T @ factors.left) * (right @ right.T)
    gram_layer = LoLDULayer(linear(weight), 6, parametrization="gram")
    step = to_diagonal(slopes["gram"], gram_layer.factors.frame)
    torch.testing.assert_close(step, torch.linalg.solve(gram, slopes["diagonal"]), atol=1e-8, rtol=1e-8)


@given(st.integers(1, 12), st.integers(0, 2**32))
def test_normalized_terms_have_unit_norm(rank, seed):
    generator = torch.Generator().manual_seed(seed)
    layer = LoLDULayer(
        linear(torch.randn(14, 12, generator=generator, dtype=torch.float64)), rank, parametrization="normalized"
    )
    for index in range(rank):
        with torch.no_grad():
            layer.offset.zero_()
            layer.offset[index] = 1.0
        torch.testing.assert_close(layer.delta_weight().norm(), torch.tensor(1.0, dtype=torch.float64))


@pytest.mark.parametrize("parametrization", PARAMETRIZATIONS)
@given(st.integers(0, 2**32))
def test_coordinates_and_diagonals_are_each_others_inverse(parametrization, seed):
    generator = torch.Generator().manual_seed(seed)
    left, right = (torch.randn(shape, generator=generator, dtype=torch.float64) for shape in ((9, 4), (4, 8)))
    frame, jitter = coordinates_of(left, right, parametrization)
    offset = torch.randn(4, generator=generator, dtype=torch.float64)
    assert jitter == 0.0
    tolerance = 1e-12 * is_hard(left, right)
    torch.testing.assert_close(to_diagonal(from_diagonal(offset, frame), frame), offset, atol=tolerance, rtol=0)


@pytest.mark.parametrize("parametrization", PARAMETRIZATIONS)
def test_the_projection_is_of_z_in_any_coordinates(parametrization):
    layer = LoLDULayer(nn.Linear(20, 16), 6, parametrization=parametrization)
    with torch.no_grad():
        layer.offset.normal_(std=3.0)
        layer.sigma.fill_(-2.0)
    direction = layer.z.detach() / layer.z.detach().norm()
    project_(layer, epsilon=0.25)
    torch.testing.assert_close(layer.z, 0.25 * direction, atol=1e-4, rtol=1e-4)
    assert 0 < layer.sigma.item() <= 1


@pytest.mark.parametrize(
    "make", [lambda: torch.zeros(6, 6), lambda: torch.ones(6, 6), lambda: torch.eye(6)[:, :3] @ torch.ones(3, 6)]
)
@pytest.mark.parametrize("parametrization", PARAMETRIZATIONS)
@pytest.mark.filterwarnings("ignore:the 4 rank-one terms are linearly dependent")
def test_dependent_and_zero_terms_stay_finite(make, parametrization):
    layer = LoLDULayer(linear(make()), 4, parametrization=parametrization)
    x = torch.randn(3, 6)
    assert torch.equal(layer(x), layer.base_layer(x))
    layer(x).square().sum().backward()
    with torch.no_grad():
        layer.offset.fill_(0.1)
    assert torch.isfinite(layer(x)).all()
    assert torch.isfinite(layer.offset.grad).all()


def test_jitter_is_reported():
    """The same term twice: no Cholesky factor without it."""
    left, right = torch.ones(5, 2, dtype=torch.float64), torch.ones(2, 4, dtype=torch.float64)
    with pytest.warns(UserWarning, match="the 2 rank-one terms are linearly dependent to rounding"):
        frame, jitter = coordinates_of(left, right, "gram")
    assert 0 < jitter < 1e-10
    assert torch.isfinite(frame).all()


@pytest.mark.parametrize("rank", [64, 384])
def test_what_the_metric_buys_on_a_real_weight(rank):
    """The condition number of the coordinates, which bounds how fast gradient descent can be: 1 in the metric."""
    weight = minilm("encoder.layer.2.attention.self.value.weight").double()
    conditions = {}
    for parametrization in PARAMETRIZATIONS:
        layer = LoLDULayer(linear(weight), rank, parametrization=parametrization)
        factors = layer.factors
        right = factors.right * factors.scale[:, None]
        gram = (factors.left.T @ factors.left) * (right @ right.T)
        frame = torch.eye(rank, dtype=torch.float64) if factors.frame is None else factors.frame
        frame = torch.diag(frame) if frame.ndim == 1 else frame
        conditions[parametrization] = float(torch.linalg.cond(frame.T @ gram @ frame))
    assert conditions["gram"] == pytest.approx(1.0, abs=1e-6)
    assert conditions["normalized"] < conditions["diagonal"]
    assert conditions["diagonal"] > (1e3 if rank == 384 else 50)


def test_factors_of_a_meta_weight_wait_for_it():
    options = FactorOptions(4)
    waiting = Factors(torch.empty(8, 6, device="meta"), options)
    assert not waiting.ready
    assert waiting.left.shape == (8, 4)
    weight = torch.randn(8, 6)
    waiting.build(weight)
    there = Factors(weight, options)
    assert torch.equal(waiting.left, there.left)
    assert waiting.ready


def test_a_sample_tells_another_weight_from_a_rounding_of_the_same():
    weight, other = torch.randn(2, 40, 30)
    sample = Factors.sample_of(weight)
    assert sample_deviation(sample, Factors.sample_of(weight)) == 0.0
    assert sample_deviation(sample, Factors.sample_of(weight.bfloat16())) < 0.01
    assert sample_deviation(sample, Factors.sample_of(other)) > 0.5
    assert sample_deviation(torch.zeros(32), torch.ones(32)) == float("inf")
    assert Factors.sample_of(torch.ones(1, 1)).tolist() == [1.0] * 32


@pytest.mark.parametrize("parametrization", PARAMETRIZATIONS)
def test_copies_pickles_casts_and_compilation(parametrization):
    torch.manual_seed(0)
    layer = LoLDULayer(nn.Linear(20, 16), 6, parametrization=parametrization)
    with torch.no_grad():
        layer.offset.normal_(std=0.1)
    x = torch.randn(5, 20)
    expected = layer(x)
    assert torch.equal(copy.deepcopy(layer)(x), expected)
    buffer = io.BytesIO()
    torch.save(layer, buffer)
    buffer.seek(0)
    assert torch.equal(torch.load(buffer, weights_only=False)(x), expected)
    compiled = torch.compile(layer, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(x), expected)
    for dtype, tolerance in ((torch.float64, 1e-5), (torch.bfloat16, 0.1), (torch.float16, 0.02)):
        cast = copy.deepcopy(layer).to(dtype)
        torch.testing.assert_close(cast(x.to(dtype)).float(), expected, atol=tolerance, rtol=tolerance)
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(layer(x).float(), expected, atol=0.1, rtol=0.1)


def test_unknown_names_are_refused():
    with pytest.raises(ValueError, match="basis is 'eigen'; accepted: 'ldu', 'svd', 'random'"):
        LoLDULayer(nn.Linear(4, 4), 2, basis="eigen")
    with pytest.raises(ValueError, match="parametrization is 'polar'; accepted: 'diagonal', 'normalized', 'gram'"):
        LoLDULayer(nn.Linear(4, 4), 2, parametrization="polar")
