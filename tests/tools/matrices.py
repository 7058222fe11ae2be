"""Matrices to test on, and how far rounding may carry a result."""

import numpy as np
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

MAX_SIDE = 12


def shapes(max_side=MAX_SIDE):
    side = st.integers(1, max_side)
    return st.tuples(side, side)


def _entries(dtype, limit):
    return st.floats(-limit, limit, allow_nan=False, width=32 if dtype == np.float32 else 64)


@st.composite
def any_finite(draw, dtypes=(np.float32, np.float64), max_side=MAX_SIDE):
    """Finite matrices of every kind: zero, constant, sparse, repeated rows, small integers full of ties, any scale."""
    dtype = draw(st.sampled_from(dtypes))
    shape = draw(shapes(max_side))
    kind = draw(st.sampled_from(["zero", "floats", "ties", "low rank", "huge", "tiny", "graded", "normal"]))
    if kind == "zero":
        return np.zeros(shape, dtype)
    if kind == "floats":
        return draw(npst.arrays(dtype, shape, elements=_entries(dtype, 1e3)))
    if kind == "ties":
        return draw(npst.arrays(dtype, shape, elements=st.sampled_from([-1.0, 0.0, 1.0])))
    generator = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    if kind == "low rank":
        rank = draw(st.integers(1, min(shape)))
        left = generator.integers(-3, 4, (shape[0], rank))
        return (left @ generator.integers(-3, 4, (rank, shape[1]))).astype(dtype)
    normal = generator.standard_normal(shape)
    if kind == "huge":
        # Just short of the largest number, where a product could round up to infinity, and rightly so.
        return (normal / np.abs(normal).max() * (np.finfo(dtype).max * (1 - 2.0**-10))).astype(dtype)
    if kind == "tiny":
        return (normal * float(np.finfo(dtype).tiny)).astype(dtype)
    if kind == "graded":
        return (normal * 10.0 ** -np.arange(shape[1])).astype(dtype)
    return normal.astype(dtype)


def well_conditioned(generator, m, n, dtype=np.float64, condition=100.0):
    """A matrix of full rank with singular values from 1 down to 1 / condition."""
    k = min(m, n)
    left = np.linalg.qr(generator.standard_normal((m, k)))[0]
    right = np.linalg.qr(generator.standard_normal((n, k)))[0]
    return (left * np.geomspace(1, 1 / condition, k)) @ right.T.astype(dtype)


def elimination_bound(lower, diagonal, upper, W):
    """How far rounding may carry a computed elimination of W, entry by entry.

    Higham, Accuracy and Stability of Numerical Algorithms, theorem 9.3: |W - L U| <= gamma_k |L| |U| with
    gamma_k = k eps / (1 - k eps), for any order of the sums. Twice that: the diagonal is split off (one more rounding),
    and the product is formed again by the test. The smallest normal number covers what underflows.
    """
    finfo = np.finfo(W.dtype)
    k = diagonal.shape[-1] + 2
    lower, diagonal, upper = (np.abs(np.asarray(a, np.longdouble)) for a in (lower, diagonal, upper))
    size = (lower * diagonal[..., None, :]) @ upper + np.abs(W.astype(np.longdouble))
    return 2 * k * float(finfo.eps) * size + 4 * k * float(finfo.tiny)


@st.composite
def spread_over_the_range(draw, dtypes=(np.float32, np.float64), max_side=9):
    """Finite matrices whose numbers are at both ends of the range, by rows, columns, blocks or entries."""
    dtype = draw(st.sampled_from(dtypes))
    m, n = draw(shapes(max_side))
    lowest, highest = (-149, 127) if dtype == np.float32 else (-1074, 1023)
    exponent = st.integers(lowest, highest)
    kind = draw(st.sampled_from(["whole", "rows", "columns", "entries", "blocks", "triangle"]))
    generator = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    normal = np.clip(generator.standard_normal((m, n)), -1.9, 1.9)
    exponents = np.full((m, n), draw(exponent))
    if kind == "entries":
        exponents = generator.integers(lowest, highest + 1, (m, n))
    elif kind == "rows":
        exponents = generator.integers(lowest, highest + 1, (m, 1))
    elif kind == "columns":
        exponents = generator.integers(lowest, highest + 1, (1, n))
    elif kind in {"blocks", "triangle"}:
        i, j = draw(st.integers(0, m)), draw(st.integers(0, n))
        exponents[i:, j:] = draw(exponent)
        normal[i:, :j] = 0
        if kind == "blocks":
            normal[:i, j:] = 0
    return np.ldexp(normal, exponents).astype(dtype)


def underflow_bound(factors, W):
    """The bound of `elimination_bound`, where factors may have entries below the smallest normal number.

    These are off by the smallest subnormal number, each, and what they are multiplied with carries it on.
    """
    left, z, right = (np.abs(np.asarray(a, np.longdouble)) for a in (factors.left, factors.diagonal, factors.right))
    least = float(np.finfo(W.dtype).smallest_subnormal)
    lost = least * (z @ right + (left @ z)[:, None] + least * z.sum())
    return elimination_bound(factors.left, factors.diagonal, factors.right, W) + 2 * lost
