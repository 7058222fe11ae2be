"""LDU of products of thin matrices: exact to rounding, also where the product has a lower rank."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from test_near_best import check_triangles, pivots

from lowrank_ldu.decomposition import ldu_lowrank, ldu_of_product, pissa, svd
from lowrank_ldu.nn import LDULayer

KINDS = ("normal", "integers", "ties", "zero", "graded", "dependent", "cancelling")


@st.composite
def pairs(draw):
    """A pair of thin factors, often dependent or zero."""
    r = draw(st.integers(1, 7))
    m, n = draw(st.integers(r, 20)), draw(st.integers(r, 20))
    generator = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    dtype = draw(st.sampled_from([np.float32, np.float64]))
    kind = draw(st.sampled_from(KINDS))
    left, right = generator.standard_normal((m, r)), generator.standard_normal((r, n))
    if kind == "integers":
        left, right = np.round(2 * left), np.round(2 * right)
    elif kind == "ties":
        left, right = np.sign(left), np.sign(right)
    elif kind == "zero":
        left = np.zeros_like(left)
    elif kind == "graded":
        left, right = left * 10.0 ** -np.arange(r), right * 10.0 ** np.arange(0, -r, -1)[:, None]
    elif kind == "dependent":
        left[:, generator.integers(r)] = left[:, 0]
        right[generator.integers(r)] = 0
    elif kind == "cancelling":
        left[:, -1], right[-1] = left[:, 0], -right[0]
    return left.astype(dtype), right.astype(dtype)


def product_bound(left, right):
    """Rounding of r products and of their elimination, whose multipliers are at most 1 on either side."""
    r = left.shape[-1]
    return 30 * r**2 * np.finfo(left.dtype).eps * (np.abs(left) @ np.abs(right)).max()


@given(pairs())
def test_the_factors_are_exact_to_rounding(pair):
    left, right = pair
    factors = ldu_of_product(left, right)
    assert factors.origin == "product"
    assert factors.rank == left.shape[1]
    check_triangles(factors)
    exact = left.astype(np.longdouble) @ right
    product = (factors.left.astype(np.longdouble) * factors.diagonal) @ factors.right
    assert np.abs(product - exact).max() <= product_bound(left, right)


@given(pairs(), st.sampled_from([0, -1, 1]), st.sampled_from([0, -1, 1]))
def test_factors_at_the_ends_of_the_range(pair, of_left, of_right):
    """Scaled by powers of two against each other the product is the same one, exactly so."""
    left, right = pair
    exponent = 60 if left.dtype == np.float32 else 500
    expected = ldu_of_product(left, right)
    scaled = ldu_of_product(
        np.ldexp(left, of_left * exponent), np.ldexp(right, (of_right if of_left == 0 else -of_left) * exponent)
    )
    power = of_right * exponent if of_left == 0 else 0
    atol = product_bound(left, right)
    np.testing.assert_allclose(np.ldexp(scaled.reconstruct(), -power), expected.reconstruct(), rtol=0, atol=atol)


def test_a_product_beyond_the_range_is_refused():
    huge = np.full((3, 1), 1e30, np.float32)
    with pytest.raises(ValueError, match="the diagonal has entries beyond .*; accepted: a product whose entries"):
        ldu_of_product(huge, huge.T)


@given(pairs())
def test_rebuilt_at_its_pivots_it_is_the_same(pair):
    left, right = pair
    factors = ldu_of_product(left, right)
    if np.abs(factors.diagonal).min() <= 1e-3 * np.abs(factors.diagonal).max():
        return  # pivots that are rounding are other ones each time
    rebuilt = ldu_of_product(left, right, pivots=pivots(factors))
    assert pivots(rebuilt) == pivots(factors)
    for field in ("left", "diagonal", "right"):
        expected = getattr(factors, field)
        scale = np.linalg.cond(factors.lower) * np.linalg.cond(factors.upper) * 1e3 * np.abs(expected).max()
        np.testing.assert_allclose(getattr(rebuilt, field), expected, atol=20 * np.finfo(left.dtype).eps * scale)


@pytest.mark.parametrize("factor", [ldu_of_product, lambda left, right, **given: ldu_lowrank(left @ right, 2, **given)])
def test_pivots_at_which_the_product_is_zero_are_refused(library, factor):
    left, right = np.eye(6, 2), np.array([[1.0], [2.0]]) * np.eye(2, 6)
    for rows, columns in (([3, 4], [3, 4]), ([0, 4], [0, 4]), ([3, 4], [0, 1])):
        with pytest.raises(ValueError, match="accepted: pivots that were chosen for this matrix"):
            factor(library.array(left), library.array(right), pivots=(rows, columns))
    # Pivot rows are kept whole, also where the columns are zero.
    for rows, columns in (([1, 0], [1, 0]), ([0, 1], [3, 4])):
        there = factor(library.array(left), library.array(right), pivots=(rows, columns))
        np.testing.assert_allclose(library.numpy(there.reconstruct()), left @ right, atol=1e-14)


def test_pivots_that_let_the_factors_grow_beyond_the_product_are_refused():
    left = np.array([[1e-15, 1.0], [1.0, 0.9], [1.0, 0.3]])
    with pytest.raises(ValueError, match="pivots give factors that are .* off, of a product with terms of size 2.79"):
        ldu_of_product(left, np.eye(2), pivots=([0, 1], [0, 1]))
    left[0, 0] = 1e-6
    grown = ldu_of_product(left, np.eye(2), pivots=([0, 1], [0, 1]))
    assert np.abs(grown.lower).max() == 1e6
    np.testing.assert_allclose(grown.reconstruct(), left, atol=1e-9)


@given(st.integers(1, 24), st.data(), st.integers(0, 2**32 - 1), st.sampled_from([np.float32, np.float64]))
def test_a_product_of_lower_rank_is_rebuilt_by_another_rounding(r, data, seed, dtype):
    """Its last pivots are rounding, of which another library finds other numbers, tiny ones and zeros among them."""
    generator = np.random.default_rng(seed)
    rank, m, n = (data.draw(st.integers(*ends)) for ends in ((1, r), (r, 120), (r, 120)))
    left = (generator.standard_normal((m, rank)) @ generator.standard_normal((rank, r))).astype(dtype)
    right = generator.standard_normal((r, n)).astype(dtype)
    given = pivots(ldu_of_product(left, right))
    terms = np.linalg.norm(left, axis=0) @ np.linalg.norm(right, axis=1)
    # A power of two would round alike.
    for factor in (1.0, 1.1, 0.7):
        scaled = left * dtype(factor)
        rebuilt = ldu_of_product(torch.from_numpy(scaled), torch.from_numpy(right), pivots=given)
        error = np.linalg.norm(rebuilt.reconstruct().numpy() - scaled @ right)
        assert error <= 1e4 * np.finfo(dtype).eps * terms


def test_a_pivot_that_is_rounding_far_below_its_column_is_zero():
    """Multipliers of 1e15 would spread it over the matrix."""
    left = np.array([[1.0, 0.0], [1.0, 1e-30], [0.0, 1e-15], [1.0, 0.0]])
    right = np.array([[1.0, 0.0, 1.0], [0.0, 1.0, 1.0]])
    rebuilt = ldu_of_product(left, right, pivots=([0, 1], [0, 1]))
    assert rebuilt.zero_pivots.tolist() == [False, True]
    assert np.abs(rebuilt.left).max() == 1
    np.testing.assert_allclose(rebuilt.reconstruct(), left @ right, atol=1e-14)


def test_libraries_agree(library):
    generator = np.random.default_rng(0)
    left, right = generator.standard_normal((30, 5)), generator.standard_normal((5, 40))
    reference = ldu_of_product(left, right)
    other = ldu_of_product(library.array(left), library.array(right))
    assert type(other.left) is type(library.array(left))
    for field in ("left", "diagonal", "right", "permutation", "column_permutation"):
        np.testing.assert_allclose(library.numpy(getattr(other, field)), getattr(reference, field), atol=1e-12)
    again = ldu_of_product(library.array(left), library.array(right), pivots=pivots(reference))
    np.testing.assert_allclose(library.numpy(again.right), reference.right, atol=1e-12)


def test_stacks_and_other_factorizations(library):
    W = np.random.default_rng(0).standard_normal((3, 8, 6))
    for factors in (svd(library.array(W), 3), pissa(library.array(W), 3)):
        left = factors.left * factors.diagonal[..., None, :]
        ours = ldu_of_product(left, factors.right)
        np.testing.assert_allclose(
            library.numpy(ours.reconstruct()), library.numpy(factors.reconstruct()), rtol=0, atol=1e-13
        )
        np.testing.assert_allclose(library.numpy(ours.truncate(2).left), library.numpy(ours.left)[..., :2])


@pytest.mark.parametrize(
    ("left", "right", "message"),
    [
        (np.ones((3, 2)), np.ones((3, 4)), r"right has shape \(3, 4\); accepted: \(2, n\), for left of shape \(3, 2\)"),
        (np.ones((5, 3, 2)), np.ones((2, 4)), r"right has shape \(2, 4\); accepted: \(5, 2, n\)"),
        (np.ones((3, 4)), np.ones((4, 5)), "r = 4; accepted: at most 3 columns of left"),
        (np.ones((3, 2)), np.ones((2, 4), np.float32), "right has dtype float32; accepted: float64, as left"),
        (np.ones((3, 2)), torch.ones((2, 4)), "accepted: a numpy.ndarray, as the factors"),
        (np.full((3, 2), np.nan), np.ones((2, 4)), "left holds 6 entries that are not finite"),
        (np.ones(3), np.ones((2, 4)), r"left has shape \(3,\); accepted: a matrix"),
    ],
)
def test_factors_that_do_not_fit(left, right, message):
    with pytest.raises((TypeError, ValueError), match=message):
        ldu_of_product(left, right)


def test_a_layer_refuses_factors_that_it_could_not_rebuild():
    layer = torch.nn.Linear(6, 5)
    weight = layer.weight.detach()
    with pytest.raises(ValueError, match="factors has origin 'product', .*; accepted: factors of the weight itself"):
        LDULayer(layer, factors=ldu_of_product(weight[:, :2], weight[:2]))


def test_arrays_that_jax_traces_are_refused():
    jax = pytest.importorskip("jax")
    with pytest.raises(TypeError, match="W is traced by JAX, .*; accepted: a concrete array"):
        jax.jit(lambda W: ldu_lowrank(W, 2).left)(jax.numpy.eye(3))
