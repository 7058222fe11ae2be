"""The notebook on the analysis runs from top to bottom, and is stored without outputs."""

import ast
import json
from pathlib import Path

import pytest
from matplotlib import pyplot as plt

NOTEBOOK = Path(__file__).parents[2] / "docs" / "analysis.ipynb"


@pytest.fixture
def figures():
    """Figures in memory alone, closed in the end."""
    plt.switch_backend("agg")
    yield
    plt.close("all")


@pytest.mark.usefixtures("figures")
def test_cells_run_one_after_another(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    content = json.loads(NOTEBOOK.read_text(encoding="utf-8"))
    cells = ["".join(cell["source"]) for cell in content["cells"] if cell["cell_type"] == "code"]
    namespace, shown = {"__name__": "__main__"}, []
    for source in cells:
        *statements, last = ast.parse(source).body
        exec(compile(ast.Module(statements, []), NOTEBOOK.name, "exec"), namespace)
        if isinstance(last, ast.Expr):  # what a notebook shows
            value = eval(compile(ast.Expression(last.value), NOTEBOOK.name, "eval"), namespace)  # noqa: S307  # ours
            shown.append(getattr(value, "_repr_html_", value.__repr__)() or repr(value))
        else:
            exec(compile(ast.Module([last], []), NOTEBOOK.name, "exec"), namespace)
    assert "LDU of state dict in memory" in shown[0]
    assert (tmp_path / "report" / "report.html").exists()


def test_it_has_no_outputs():
    content = json.loads(NOTEBOOK.read_text(encoding="utf-8"))
    assert (content["nbformat"], content["nbformat_minor"]) == (4, 5)
    assert len({cell["id"] for cell in content["cells"]}) == len(content["cells"])
    for cell in content["cells"]:
        assert not cell.get("outputs")
        assert cell.get("execution_count") is None
