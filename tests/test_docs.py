"""The pages: their Python blocks run from top to bottom, what they import is public, what they name exists."""

import ast
import importlib
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
BLOCK = re.compile(r"^```python\n(.*?)^```", re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_python_blocks_run(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    namespace = {"__name__": "__main__"}
    for block in BLOCK.finditer(page.read_text(encoding="utf-8")):
        exec(compile(block[1], page.name, "exec"), namespace)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_between_pages_lead_somewhere(page):
    for target in re.findall(r"\]\((?!https?:)([^)#]+)", page.read_text(encoding="utf-8")):
        assert (page.parent / target).exists(), target


def imports_of(code):
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.ImportFrom):
            yield node.module
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_imports_are_from_the_faces_of_packages(page):
    for block in BLOCK.finditer(page.read_text(encoding="utf-8")):
        for module in imports_of(block[1]):
            first, *inner = module.split(".")
            if first == "lowrank_ldu" and len(inner) > 1:
                face = importlib.import_module(f"lowrank_ldu.{inner[0]}")
                assert not hasattr(face, "__all__"), f"{module}: accepted: lowrank_ldu.{inner[0]}, its face"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_paths_are_those_of_the_checkout(page):
    """Not through the links from the package to the two folders beside it."""
    root = ROOT.resolve()
    tops = "|".join(folder.name for folder in ROOT.iterdir() if folder.is_dir() and not folder.name.startswith("."))
    named = re.findall(rf"(?<![\w/.])((?:{tops})/[\w./-]*\w)", page.read_text(encoding="utf-8"))
    named += re.findall(r"`([\w./-]+/[\w.-]+\.py)`", page.read_text(encoding="utf-8"))
    for path in named:
        assert (ROOT / path).exists(), path
        assert (ROOT / path).resolve() == root / path, path


@pytest.mark.parametrize("heading", ["Run it", "Test it"])
def test_the_readme_has_one_command_line_for(heading):
    """Whoever begins copies one line, and so does CI."""
    section = re.search(
        rf"^## {heading}$(.*?)^## ", (ROOT / "README.md").read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL
    )
    blocks = re.findall(r"^```sh\n(.*?)^```", section.group(1), re.MULTILINE | re.DOTALL)
    assert [block.count("\n") for block in blocks] == [1]


def test_benchmarks_measure_with_the_options_of_this_project():
    """An option of pytest-xdist among them would turn every measurement off, and leave a word at the end."""
    command = [sys.executable, "-m", "pytest", "benchmarks/test_triangular.py", "--benchmark-only", "--collect-only"]
    # By which pytest-xdist tells its workers.
    alone = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_XDIST")}
    done = subprocess.run(command, cwd=ROOT, env=alone, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
