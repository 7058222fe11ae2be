"""The array libraries that every decomposition is tested on."""

import importlib.util
import itertools

import numpy as np
import pytest
import torch

from lowrank_ldu.backend import backend_of


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


LIBRARIES = [Library("numpy", read_only), Library("torch", lambda array: torch.from_numpy(np.array(array)))]
# The dev extra brings JAX; a GPU and CuPy are tested where they are.
if importlib.util.find_spec("jax"):
    import jax

    # Without it JAX computes float64 in float32, silently.
    jax.config.update("jax_enable_x64", True)
    LIBRARIES.append(Library("jax", lambda array: jax.numpy.asarray(np.array(array))))
if torch.cuda.is_available():
    LIBRARIES.append(Library("torch-cuda", lambda array: torch.from_numpy(np.array(array)).cuda()))
if importlib.util.find_spec("cupy"):
    import cupy

    LIBRARIES.append(Library("cupy", lambda array: cupy.asarray(np.array(array))))


def on_libraries(*axes):
    """Libraries with all combinations of values; JAX, which compiles seconds for each, with every value once or more.

    Each pair of values is with a library that way, and each value with each library.
    """
    cases = []
    for library in LIBRARIES:
        if library.name == "jax":
            cases += [(library, *(axis[i % len(axis)] for axis in axes)) for i in range(max(map(len, axes)))]
        else:
            cases += [(library, *values) for values in itertools.product(*axes)]
    return [pytest.param(*case, id="-".join(map(_name, case))) for case in cases]


def _name(value):
    return getattr(value, "__name__", None) or str(value).replace(" ", "")
