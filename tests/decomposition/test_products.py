"""LDU of products of thin matrices: exact to rounding, also where the product has a lower rank."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from test_near_best import check_triangles, pivots

from lowrank_ldu.decomposition import ldu_of_product, pissa, svd
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
