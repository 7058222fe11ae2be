"""What packages show: their public names alone, in `dir()` and to whoever completes names."""

import importlib
import inspect
import pickle
import pkgutil
import pydoc
import tomllib
from pathlib import Path

import numpy as np
import pytest

import lowrank_ldu

ROOT = Path(__file__).parents[1]
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


def test_the_links_lead_to_the_folders_beside_the_package():
    """What reads the tree finds the whole package by them: type checkers, editors, the import contracts."""
    for name in ("analysis", "kernels"):
        link = ROOT / "lowrank_ldu" / name
        if link.is_file():
            pytest.skip("git made no links here")
        assert link.is_symlink()
        assert link.readlink().as_posix() == f"../{name}"


def test_every_package_of_the_tree_is_installed():
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    found = {".".join(file.parent.relative_to(ROOT).parts) for file in (ROOT / "lowrank_ldu").rglob("__init__.py")} | {
        f"lowrank_ldu.{'.'.join(file.parent.relative_to(ROOT).parts)}"
        for name in ("analysis", "kernels")
        for file in (ROOT / name).rglob("__init__.py")
    }
    assert set(settings["packages"]) == found
