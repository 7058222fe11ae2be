"""What importing costs and brings in, checked in a fresh interpreter."""

import subprocess
import sys

import pytest

import lowrank_ldu
import lowrank_ldu.kernels


def modules_after(statement, tmp_path):
    # Elsewhere than in the source tree, where `python -c` would find the folder and not the installed package.
    script = f"import sys; {statement}; print(*sorted(sys.modules))"
    done = subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True, cwd=tmp_path)
    return {name.partition(".")[0] for name in done.stdout.split()}, set(done.stdout.split())


HEAVY = {"torch", "triton", "transformers", "peft", "matplotlib", "pandas", "jax", "cupy", "sklearn", "typer", "rich"}


def test_the_package_imports_no_framework(tmp_path):
    packages, _ = modules_after("import lowrank_ldu", tmp_path)
    assert not packages & HEAVY


def test_factoring_a_numpy_array_imports_no_framework(tmp_path):
    packages, _ = modules_after(
        "import numpy, lowrank_ldu as l; W = numpy.eye(3); l.diagnose(W, l.ldu(W, 2, pivoting='rook').refit(W))",
        tmp_path,
    )
    assert not packages & HEAVY


def test_the_face_of_the_analysis_imports_no_framework_until_it_is_used(tmp_path):
    packages, _ = modules_after("import lowrank_ldu.analysis as a; a.JournalError", tmp_path)
    assert not packages & (HEAVY | {"pyarrow", "jinja2"})
    packages, _ = modules_after("from lowrank_ldu.analysis import Analysis, analyze, compare", tmp_path)
    assert not packages & {"matplotlib", "pandas", "pyarrow", "jinja2", "transformers", "peft", "typer"}


def test_the_face_of_the_analysis_has_what_it_lists():
    import lowrank_ldu.analysis

    assert dir(lowrank_ldu.analysis) == sorted(lowrank_ldu.analysis.__all__)
    for name in lowrank_ldu.analysis.__all__:
        assert getattr(lowrank_ldu.analysis, name).__name__ == name or name in {"ComputeDtype", "Mode"}
    with pytest.raises(AttributeError, match="has no attribute 'analyse'"):
        _ = lowrank_ldu.analysis.analyse


def test_the_layer_imports_neither_analysis_nor_fine_tuning(tmp_path):
    packages, names = modules_after("import lowrank_ldu.nn, lowrank_ldu.adapters", tmp_path)
    assert "torch" in packages
    assert not packages & {"transformers", "peft", "matplotlib", "pandas", "typer"}
    assert not {"lowrank_ldu.analysis", "lowrank_ldu.demo", "lowrank_ldu.cli"} & names
    # Of torch.compile and of sizes that are symbols: as long again as importing torch.
    assert not {"torch._dynamo", "sympy"} & names


def test_the_folders_are_not_importable_under_their_bare_names(tmp_path):
    for name in ("kernels", "analysis"):
        script = f"import importlib.util, sys; spec = importlib.util.find_spec('{name}'); print(spec and spec.origin)"
        done = subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True, cwd=tmp_path)
        assert "lowrank" not in done.stdout


@pytest.mark.parametrize("name", lowrank_ldu.__all__)
def test_public_names_exist_and_are_documented(name):
    assert getattr(lowrank_ldu, name).__doc__


def test_completion_shows_public_names_alone():
    assert dir(lowrank_ldu.kernels) == sorted(lowrank_ldu.kernels.__all__)


def test_version_is_the_installed_one():
    from importlib.metadata import version

    assert version("lowrank-ldu") == lowrank_ldu.__version__
