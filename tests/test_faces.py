"""What packages show: their public names alone, in `dir()` and to whoever completes names."""

import importlib
import inspect
import pickle
import pkgutil
import pydoc

import numpy as np
import pytest

import lowrank_ldu

PACKAGES = [module.name for module in pkgutil.iter_modules(lowrank_ldu.__path__) if module.ispkg]
MODULES = {module.name for module in pkgutil.iter_modules(lowrank_ldu.__path__)}
FACES = [name for name in PACKAGES if hasattr(importlib.import_module(f"lowrank_ldu.{name}"), "__all__")]


@pytest.mark.parametrize("name", FACES)
def test_a_package_shows_its_public_names(name):
    package = importlib.import_module(f"lowrank_ldu.{name}")
    assert dir(package) == sorted(package.__all__)
    assert all(hasattr(package, each) for each in package.__all__)


def test_the_root_shows_its_names_and_the_packages():
    shown = set(dir(lowrank_ldu)) - set(lowrank_ldu.__all__)
    assert shown - {"__version__"} <= MODULES
    assert {"adapters", "analysis", "kernels", "nn", "peft"} < shown
    assert not shown & {"backend", "cli", "validation", "files"}


def test_what_looks_through_modules_works_as_before():
    assert inspect.getmodule(lowrank_ldu.ldu).__name__ == "lowrank_ldu.decomposition.ldu"
    assert {"ldu", "svd"} <= dict(inspect.getmembers(lowrank_ldu, inspect.isfunction)).keys()
    assert "Factor W = P L diag(z) U Q^T" in pydoc.render_doc(lowrank_ldu, renderer=pydoc.plaintext)
    factors = lowrank_ldu.ldu(np.eye(3))
    assert np.array_equal(pickle.loads(pickle.dumps(factors)).left, factors.left)  # noqa: S301
