"""Pairs of random matrices, and the share that terms express of one by dense least squares."""

import numpy as np
import torch
from hypothesis import strategies as st

sizes = st.tuples(st.integers(2, 12), st.integers(2, 12), st.integers(0, 2**32 - 1))


def gaussian_pair(sizes, dtype=np.float64):
    m, n, seed = sizes
    generator = np.random.default_rng(seed)
    return tuple(torch.from_numpy(generator.standard_normal((m, n)).astype(dtype)) for _ in range(2))


def dense_share(update, factors, rank):
    """The share by dense least squares in float64 on the vectorized terms, and their condition number at unit norm."""
    left, right, target = (array.double().numpy() for array in (factors.left, factors.right, update))
    terms = np.stack([np.outer(left[:, i], right[i]).ravel() for i in range(rank)], axis=1)
    terms /= np.linalg.norm(terms, axis=0)
    solution = np.linalg.lstsq(terms, target.ravel(), rcond=None)[0]
    residual = target.ravel() - terms @ solution
    return 1 - np.sum(residual**2) / np.sum(target**2), np.linalg.cond(terms)
