"""Every example in a docstring runs."""

import doctest
import importlib
import importlib.util
import pkgutil

import pytest

import lowrank_ldu

MODULES = [
    module.name
    for module in pkgutil.walk_packages(lowrank_ldu.__path__, "lowrank_ldu.")
    if not (module.name.endswith("cupy_backend") and importlib.util.find_spec("cupy") is None)
]


@pytest.mark.parametrize("name", MODULES)
def test_examples(name):
    assert doctest.testmod(importlib.import_module(name)).failed == 0


def test_the_public_functions_have_examples():
    for name in lowrank_ldu.__all__:
        found = doctest.DocTestFinder(recurse=False).find(getattr(lowrank_ldu, name))
        if callable(getattr(lowrank_ldu, name)) and not isinstance(getattr(lowrank_ldu, name), type):
            assert any(test.examples for test in found), name
