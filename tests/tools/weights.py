"""Weights and names for the tests of the analysis."""

import numpy as np
import torch

HOSTILE = '<script>alert("x")</script>&\x1b[31m'


def weight(*shape, seed=0, dtype=torch.float32):
    return torch.from_numpy(np.random.default_rng(seed).standard_normal(shape)).to(dtype)
