"""One clear error for every bad matrix, rank and option, the same for every library and entry."""

import numpy as np
import pytest
import torch

from lowrank_ldu import diagnose, ldu, pissa, svd

ENTRIES = [ldu, svd, pissa]


@pytest.mark.parametrize("entry", ENTRIES)
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("place", [(0, 0), (4, 5), (2, 5)])
def test_entries_that_are_not_finite(library, entry, value, place):
    W = np.ones((5, 6))
    W[place] = value
    with pytest.raises(
        ValueError, match=rf"W holds 1 entries that are not finite, the first at \({place[0]}, {place[1]}\)"
    ):
        entry(library.array(W), 1)


def test_opposite_infinities_and_sums_that_overflow(library):
    W = np.ones((3, 3))
    W[0, 0], W[2, 2] = np.inf, -np.inf
    with pytest.raises(ValueError, match="W holds 2 entries"):
        ldu(library.array(W))
    # Finite entries whose sum is not: no reason to refuse.
    ldu(library.array(np.full((4, 4), np.finfo(np.float64).max)))


@pytest.mark.parametrize("entry", ENTRIES)
@pytest.mark.parametrize(
    ("W", "error", "message"),
    [
        ([[1.0]], TypeError, r"W is a builtins.list; accepted: an array of numpy, torch, jax, cupy"),
        ("W", TypeError, "W is a builtins.str"),
        (None, TypeError, "W is a builtins.NoneType"),
        (np.eye(3, dtype=np.int64), TypeError, "W has dtype int64; accepted: float16, bfloat16, float32, float64"),
        (np.eye(3, dtype=bool), TypeError, "W has dtype bool"),
        (np.eye(3, dtype=complex), TypeError, "W has dtype complex128"),
        (torch.eye(3, dtype=torch.int8), TypeError, "W has dtype int8"),
        (torch.eye(3, dtype=torch.complex64), TypeError, "W has dtype complex64"),
        (torch.eye(3).to(torch.float8_e4m3fn), TypeError, "W has dtype float8_e4m3fn"),
        (np.ones(3), ValueError, r"W has shape \(3,\); accepted: a matrix \(m, n\)"),
        (np.float64(1.0) * np.ones(()), ValueError, r"W has shape \(\)"),
        (np.ones((0, 3)), ValueError, r"W has shape \(0, 3\), which holds no entries"),
        (np.ones((3, 0)), ValueError, "holds no entries"),
        (torch.ones(2, 0, 3), ValueError, "holds no entries"),
        (torch.ones(3, 3, device="meta"), ValueError, "W is on the meta device"),
    ],
)
def test_what_is_not_a_matrix(entry, W, error, message):
    if isinstance(W, np.generic):
        W = np.asarray(W)
    with pytest.raises(error, match=message):
        entry(W)


@pytest.mark.parametrize("entry", ENTRIES)
@pytest.mark.parametrize(
    ("rank", "error"),
    [(0, ValueError), (-1, ValueError), (5, ValueError), (1.0, TypeError), ("2", TypeError), (True, TypeError)],
)
def test_rank_out_of_range(library, entry, rank, error):
    with pytest.raises(error, match=r"rank is .*; accepted: an integer from 1 to 4"):
        entry(library.array(np.eye(4, 6)), rank)


def test_rank_may_be_any_integer_type():
    assert ldu(np.eye(4), np.int64(2)).rank == 2


def test_unknown_pivoting():
    with pytest.raises(
        ValueError, match="pivoting is 'diagonal'; accepted: 'partial', 'complete', 'rook', 'randomized'"
    ):
        ldu(np.eye(3), pivoting="diagonal")


@pytest.mark.parametrize("method", ["residual", "refit"])
def test_other_shape_than_what_was_factored(method):
    factors = ldu(np.eye(3, 4))
    with pytest.raises(ValueError, match=r"W has shape \(4, 3\); accepted: \(3, 4\)"):
        getattr(factors, method)(np.eye(4, 3))


def test_truncating_beyond_the_rank():
    with pytest.raises(ValueError, match="rank is 3; accepted: an integer from 1 to 2"):
        ldu(np.eye(4), 2).truncate(3)


def test_arrays_of_another_library_than_the_factors():
    W = np.random.default_rng(0).standard_normal((4, 4))
    factors = ldu(torch.from_numpy(W))
    for call in (factors.residual, factors.refit, lambda W: diagnose(W, factors)):
        with pytest.raises(TypeError, match="W is a numpy.ndarray; accepted: a torch.Tensor, as the factors"):
            call(W)


def test_a_matrix_that_overflows_the_factors_dtype():
    factors = ldu(np.eye(3, dtype=np.float32))
    with pytest.raises(ValueError, match="W in the factors' float32 holds 3 entries that are not finite"):
        factors.refit(np.eye(3) * 1e300)


@pytest.mark.parametrize("seed", [-1, 1.5, "a", True])
def test_seeds(seed):
    for call in (lambda: ldu(np.eye(3), seed=seed), lambda: svd(np.eye(3), niter=1, seed=seed)):
        with pytest.raises((TypeError, ValueError), match=r"seed is .*; accepted: an integer from 0 on"):
            call()


def test_sparse_and_masked_arrays():
    with pytest.raises(TypeError, match="W has layout torch.sparse_coo; accepted: a dense tensor"):
        ldu(torch.eye(3).to_sparse())
    with pytest.raises(TypeError, match="W is a masked array"):
        ldu(np.ma.masked_array(np.eye(3), mask=np.eye(3, dtype=bool)))


@pytest.mark.parametrize("niter", [None, 2])
def test_singular_values_that_would_overflow(niter):
    with pytest.raises(ValueError, match="so that its singular values may overflow; accepted: at most"):
        svd(torch.full((8, 8), 3e38), niter=niter)


@pytest.mark.parametrize(
    ("ranks", "error"),
    [
        (4, ValueError),
        (True, TypeError),
        (2.5, TypeError),
        ("x", TypeError),
        ([None], TypeError),
        ([0], ValueError),
        ([2.0], TypeError),
    ],
)
def test_ranks_of_diagnose(ranks, error):
    with pytest.raises(error, match=r"ranks (is|holds) .*; accepted"):
        diagnose(np.eye(3), ldu(np.eye(3)), ranks)


@pytest.mark.parametrize("values", [np.ones(2), torch.ones(3)])
def test_singular_values_of_another_matrix(values):
    with pytest.raises(ValueError, match=r"singular_values has shape .*; accepted: all 3 of W"):
        diagnose(np.eye(3), ldu(np.eye(3)), singular_values=values)


def test_factors_of_another_kind():
    with pytest.raises(TypeError, match="factors is a tuple; accepted: what ldu, svd or pissa returned"):
        diagnose(np.eye(3), (1, 2, 3))


def test_diagnose_refuses_stacks_other_shapes_and_ranks():
    W = np.random.default_rng(0).standard_normal((3, 4))
    factors = ldu(W, 2)
    with pytest.raises(ValueError, match="accepted: a single matrix"):
        diagnose(np.ones((2, 3, 4)), factors)
    with pytest.raises(ValueError, match="the shape that was factored"):
        diagnose(W.T.copy(), factors)
    with pytest.raises(ValueError, match="ranks is 3; accepted: an integer from 1 to 2"):
        diagnose(W, factors, [1, 3])
