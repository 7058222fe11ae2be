"""Hypothesis profiles and the array libraries that every decomposition is tested on."""

import os

import hypothesis
import jax
import numpy as np
import pytest
import torch

from lowrank_ldu.backend import backend_of

# Without it JAX computes float64 in float32, silently.
jax.config.update("jax_enable_x64", True)

# A fixed seed: what CI proves is the same on every run. "explore" looks further, by hand.
hypothesis.settings.register_profile("fixed", deadline=None, derandomize=True, print_blob=True)
hypothesis.settings.register_profile("explore", deadline=None, max_examples=1000)
hypothesis.settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "fixed"))


class Library:
    """One array library: how a NumPy array gets in and out of it."""

    def __init__(self, name, convert):
        self.name = name
        self.array = convert

    def __repr__(self):
        return self.name

    @staticmethod
    def numpy(array):
        return np.asarray(backend_of(array).to_numpy(array))


def read_only(array):
    """A NumPy array that shows up any attempt to write to the caller's data."""
    array = np.array(array)
    array.flags.writeable = False
    return array


LIBRARIES = [
    Library("numpy", read_only),
    Library("torch", lambda array: torch.from_numpy(np.array(array))),
    Library("jax", lambda array: jax.numpy.asarray(np.array(array))),
]


@pytest.fixture(params=LIBRARIES, ids=repr)
def library(request):
    return request.param


@pytest.fixture(autouse=True)
def _fixed_torch_seed():
    torch.manual_seed(0)
