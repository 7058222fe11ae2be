"""Bases of the diagonal, and what a state dict and a deferred build make of them."""

import contextlib
import copy
import itertools
import warnings

import numpy as np
import pytest
import torch
from half_precision import assert_as_near, assert_reloaded
from hypothesis import given
from hypothesis import strategies as st
from matrices import any_finite
from torch import nn

from lowrank_ldu.decomposition import PIVOTING
from lowrank_ldu.nn import INITIALIZATIONS, PARAMETRIZATIONS, AdapterOptions, LDULayer, trainable_parameters
from lowrank_ldu.nn.base_identity import relative_difference, sample_of
from lowrank_ldu.nn.basis import WEIGHT_BASES, terms_at_pivots, terms_of
from lowrank_ldu.nn.core import CoreAdapter
from lowrank_ldu.nn.factors import Factors


def linear(weight):
    weight = torch.as_tensor(weight)
    base = nn.Linear(weight.shape[1], weight.shape[0], bias=False, dtype=weight.dtype)
    base.weight.data.copy_(weight)
    return base


def trained(layer):
    with torch.no_grad():
        layer.offset.normal_(std=0.1)
        layer.sigma.mul_(0.8)
    return layer


@given(st.integers(1, 10), st.integers(1, 10), st.integers(0, 99), st.data())
def test_svd_is_the_optimal_truncation(m, n, seed, data):
    W = np.random.default_rng(seed).standard_normal((m, n))
    rank = data.draw(st.integers(1, min(m, n)))
    factors = terms_of(torch.from_numpy(W), rank, "svd", "partial", 0).factors
    values = np.linalg.svd(W, compute_uv=False)
    np.testing.assert_allclose(factors.diagonal, values[:rank], atol=1e-12 * values[0])
    left, right = factors.left.numpy(), factors.right.numpy()
    np.testing.assert_allclose(left.T @ left, np.eye(rank), atol=1e-13)
    np.testing.assert_allclose(right @ right.T, np.eye(rank), atol=1e-13)
    # Eckart and Young: what is left over is the rest of the spectrum, and no rank-r matrix leaves less.
    error = np.linalg.norm(W - (left * factors.diagonal.numpy()) @ right)
    np.testing.assert_allclose(error, np.linalg.norm(values[rank:]), atol=1e-12 * values[0])


@given(st.integers(1, 10), st.integers(1, 10), st.integers(0, 99), st.data())
def test_random_is_orthonormal_independent_of_the_weight_and_its_diagonal_is_best(m, n, seed, data):
    rank = data.draw(st.integers(1, min(m, n)))
    W = torch.randn(m, n, dtype=torch.float64)
    factors = terms_of(W, rank, "random", "partial", seed).factors
    again = terms_of(W, rank, "random", "partial", seed).factors
    other = terms_of(torch.randn_like(W), rank, "random", "partial", seed).factors
    for part in ("left", "right"):
        assert torch.equal(getattr(factors, part), getattr(again, part))
        assert torch.equal(getattr(factors, part), getattr(other, part))
    identity = torch.eye(rank, dtype=torch.float64)
    torch.testing.assert_close(factors.left.T @ factors.left, identity, atol=1e-13, rtol=0)
    torch.testing.assert_close(factors.right @ factors.right.T, identity, atol=1e-13, rtol=0)
    terms = torch.stack([torch.outer(factors.left[:, i], factors.right[i]).flatten() for i in range(rank)], 1)
    best = np.linalg.lstsq(terms.numpy(), W.flatten().numpy())[0]
    np.testing.assert_allclose(factors.diagonal, best, atol=1e-12 * float(W.norm()))


def test_random_bases_are_the_same_on_every_numpy():
    """An adapter that was saved finds its basis by the seed alone: these entries must never change."""
    factors = terms_of(torch.ones(3, 2, dtype=torch.float64), 1, "random", "partial", 7).factors
    # The first five numbers of RandomState(7).standard_normal, normalized, with their signs.
    first = torch.tensor([1.690525703800356, -0.4659373705408328, 0.0328201636785844], dtype=torch.float64)
    second = torch.tensor([0.40751628299650783, -0.7889230286257386], dtype=torch.float64)
    torch.testing.assert_close(factors.left[:, 0], first / first.norm(), atol=1e-15, rtol=1e-14)
    torch.testing.assert_close(factors.right[0], second / second.norm(), atol=1e-15, rtol=1e-14)


def test_seeds_of_the_random_basis_differ():
    W = torch.randn(5, 4)
    left = [terms_of(W, 3, "random", "partial", seed).factors.left for seed in (0, 1)]
    assert not torch.allclose(*left)


def test_names_that_are_not_known_and_weights_out_of_range():
    with pytest.raises(ValueError, match="basis is 'qr'; accepted: 'ldu', 'svd', 'random'"):
        LDULayer(nn.Linear(4, 3), 2, basis="qr")
    with pytest.raises(ValueError, match="parametrization is 'polar'; accepted: 'diagonal', 'normalized', 'gram'"):
        LDULayer(nn.Linear(4, 3), 2, parametrization="polar")
    huge = linear(torch.full((3, 4), 3.4e38))
    for basis in ("svd", "random"):
        with pytest.raises(ValueError, match=r"W has entries up to 3\.4e\+38, .* overflow; accepted: "):
            LDULayer(huge, 2, basis=basis)
    assert LDULayer(huge, 2).factors.diagonal.isfinite().all()


def test_every_basis_and_parametrization_trains_the_same_number_of_parameters():
    base = nn.Linear(8, 6)
    counts = {
        trainable_parameters(LDULayer(base, 5, basis=basis, parametrization=parametrization)).adapter
        for basis, parametrization in itertools.product(WEIGHT_BASES, PARAMETRIZATIONS)
    }
    assert counts == {6}


@given(
    any_finite(), st.sampled_from(WEIGHT_BASES), st.sampled_from(PARAMETRIZATIONS), st.sampled_from(PIVOTING), st.data()
)
def test_any_finite_weight_gives_finite_factors_and_step_0(W, basis, parametrization, pivoting, data):
    base = linear(W)
    rank = data.draw(st.integers(1, min(W.shape)))
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "the [0-9]+ rank-one terms are linearly dependent", UserWarning)
        if basis != "ldu" and np.abs(W).max() > np.finfo(W.dtype).max / W.size:
            # The yardsticks may refuse what is near the largest number; the factorization may not.
            with contextlib.suppress(ValueError):
                LDULayer(base, rank, basis=basis, parametrization=parametrization)
            return
        layer = LDULayer(base, rank, basis=basis, parametrization=parametrization, pivoting=pivoting)
    for name, buffer in layer.named_buffers():
        assert buffer.isfinite().all(), name
    x = torch.eye(W.shape[1], dtype=base.weight.dtype)
    assert torch.equal(layer(x), base(x))


@pytest.mark.parametrize("basis", WEIGHT_BASES)
@pytest.mark.parametrize("parametrization", PARAMETRIZATIONS)
def test_state_dict_round_trip(basis, parametrization):
    """Into a layer of another base and of other options: all that counts comes from the state."""
    x = torch.randn(5, 12)
    for init, preserving in itertools.product(INITIALIZATIONS, [True, False]):
        options = {"basis": basis, "parametrization": parametrization, "init": init, "preserving": preserving}
        layer = trained(LDULayer(nn.Linear(12, 10), 4, alpha=3, pivoting="rook", seed=5, **options))
        other = LDULayer(nn.Linear(12, 10), 4, basis="svd" if basis == "ldu" else "ldu")
        other.load_state_dict(copy.deepcopy(layer.state_dict()))
        assert other.options == layer.options
        exact = LDULayer(nn.Linear(12, 10).double(), 4)
        assert_reloaded(other, layer, exact, x)
        assert_as_near(other.z, exact.z, layer.z, exact.z)


def test_a_state_dict_of_a_whole_model_and_a_strict_error():
    layer = LDULayer(nn.Linear(12, 10), 4, basis="svd")
    model = nn.Sequential(trained(layer), nn.Linear(10, 2))
    other = nn.Sequential(LDULayer(nn.Linear(12, 10), 4), nn.Linear(10, 2))
    other.load_state_dict(model.state_dict())
    x = torch.randn(3, 12)
    exact = nn.Sequential(LDULayer(nn.Linear(12, 10).double(), 4), nn.Linear(10, 2).double())
    assert_reloaded(other, model, exact, x)
    state = model.state_dict()
    del state["0.adapter.offset"]
    with pytest.raises(RuntimeError, match=r"Missing key.*0\.adapter\.offset"):
        other.load_state_dict(state)
    with pytest.raises(RuntimeError, match=r"size mismatch for adapter\.offset"):
        LDULayer(nn.Linear(12, 10), 5, basis="svd").load_state_dict(layer.state_dict())


@pytest.mark.parametrize("basis", WEIGHT_BASES)
@pytest.mark.parametrize("parametrization", PARAMETRIZATIONS)
def test_deferred_factors_are_those_that_are_built_at_once(basis, parametrization):
    weight = torch.randn(9, 7)
    options = AdapterOptions(rank=4, basis=basis, pivoting="complete", parametrization=parametrization)
    at_once = Factors(weight, options)
    deferred = Factors(weight.to("meta"), options)
    assert at_once.ready
    assert not deferred.ready
    assert not deferred.at(at_once.pivot_rows, at_once.pivot_columns)
    assert deferred.left.device.type == "meta"
    assert not deferred.state_dict()
    deferred.build(weight)
    assert deferred.ready
    built, expected = dict(deferred.named_buffers()), dict(at_once.named_buffers())
    assert built.keys() == expected.keys()
    assert all(torch.equal(built[name], expected[name]) for name in expected)
    # At given pivots: the factors of those, whatever a search would find.
    rows, columns = (None, None) if at_once.pivot_rows is None else (torch.arange(4), torch.arange(4))
    deferred.build(weight, rows, columns)
    assert deferred.at(rows, columns)
    if basis == "ldu":
        known = terms_at_pivots(weight, rows, columns, "complete").factors
        assert torch.equal(deferred.diagonal, known.diagonal)
        assert not deferred.at(at_once.pivot_rows, at_once.pivot_columns)


def test_an_adapter_of_deferred_factors_starts_when_they_are_there():
    weight = torch.randn(9, 7)
    factors = Factors(weight.to("meta"), AdapterOptions(rank=4))
    adapter = CoreAdapter(AdapterOptions().for_layer(4))
    assert not adapter.has_pivots
    factors.build(weight)
    adapter.start_from(factors)
    assert adapter.has_pivots
    assert torch.equal(adapter.z(factors), factors.diagonal)
    assert torch.equal(adapter.delta(factors), torch.zeros(4))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_samples_tell_another_base_from_a_rounding_of_the_same(dtype):
    weight = torch.randn(30, 20, dtype=torch.float64)
    sample = Factors(weight, AdapterOptions(rank=2)).sample
    rounded = sample_of(weight.to(dtype))
    # Half a unit in the last place of bfloat16 is 2^-9.
    assert relative_difference(sample, rounded) <= 2**-8
    assert relative_difference(sample, sample_of(torch.randn(30, 20))) > 0.5
    assert len(sample_of(torch.ones(1, 1))) == len(sample)
    assert relative_difference(torch.zeros(32), torch.zeros(32)) == 0.0
    assert relative_difference(torch.zeros(32), torch.ones(32)) == float("inf")
    # Numbers beyond float32 can still be compared.
    assert relative_difference(sample_of(weight * 1e300), sample_of(weight * 1e300)) == 0.0
