"""Static types: results are typed by the caller's arrays, and nothing of it is seen at run time."""

import dataclasses
import pickle
import pydoc
import subprocess
import sys
import typing
from pathlib import Path

import numpy as np
import pytest
import torch

from lowrank_ldu import LDU, Factorization, ldu, ldu_at_pivots, pissa, svd

ROOT = Path(__file__).parents[2]

SNIPPET = """
import numpy as np
import torch
from lowrank_ldu import LDU, Factorization, diagnose, gram_matrix, ldu, ldu_at_pivots, pissa, svd
from lowrank_ldu import ldu_lowrank, ldu_of_product

array = np.random.default_rng(0).standard_normal((3, 2))
tensor = torch.eye(3)
reveal_type(ldu(array))
reveal_type(ldu(array).refit(array).left)
reveal_type(ldu(tensor))
reveal_type(ldu(tensor).truncate(2))
reveal_type(ldu(tensor).lower)
reveal_type(ldu(tensor).fit(tensor))
reveal_type(ldu(tensor).reconstruct())
reveal_type(svd(tensor))
reveal_type(pissa(tensor))
reveal_type(ldu_at_pivots(tensor, [0]))
reveal_type(gram_matrix(tensor, tensor))
reveal_type(ldu_lowrank(tensor, 2))
reveal_type(ldu_of_product(tensor, tensor))
factors: Factorization[torch.Tensor] = svd(tensor)
unsaid: LDU = ldu(array)
array[ldu(array).permutation]
ldu(array).left @ np.diag(ldu(array).diagonal) @ ldu(array).right
diagnose(array, ldu(array.astype(np.float32)))
ldu([[1.0]])  # error: Value of type variable "ArrayType" of "ldu" cannot be "list[list[float]]"
ldu(tensor, pivoting="none")  # error: Argument "pivoting" to "ldu" has incompatible type "Literal['none']"
"""
ARRAY, TENSOR = "numpy.ndarray[tuple[Any, ...], numpy.dtype[numpy.float64]]", "torch._tensor.Tensor"
OF_ARRAY = [f"LDU[{ARRAY}]", ARRAY]
OF_TENSOR = [
    "LDU[{0}]", "LDU[{0}]", "{0}", "Factorization[{0}]", "{0}", "SVD[{0}]", "PiSSA[{0}]", "LDU[{0}]", "{0}", "LDU[{0}]",
    "LDU[{0}]",
]  # fmt: skip


@pytest.mark.longer
def test_a_type_checker_sees_the_callers_arrays(tmp_path):
    snippet = tmp_path / "snippet.py"
    snippet.write_text(SNIPPET)
    command = [sys.executable, "-m", "mypy", "--config-file", ROOT / "pyproject.toml", "--cache-dir", tmp_path, snippet]
    said = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False).stdout.splitlines()
    revealed = [line.partition('Revealed type is "')[2].rstrip('"') for line in said if "Revealed" in line]
    expected = [*OF_ARRAY, *(each.format(TENSOR) for each in OF_TENSOR)]
    assert len(revealed) == len(expected), said
    for seen, wanted in zip(revealed, expected, strict=True):
        assert seen == wanted or seen.endswith(f".{wanted}")
    errors = [line.partition("# error: ")[2] for line in SNIPPET.splitlines() if "# error: " in line]
    assert len(errors) == len([line for line in said if " error: " in line]), said
    assert all(any(error in line for line in said) for error in errors), said


@pytest.mark.parametrize("W", [np.eye(3), torch.eye(3)], ids=["numpy", "torch"])
@pytest.mark.parametrize("factor", [ldu, svd, pissa, lambda W: ldu_at_pivots(W, [0, 1, 2])])
def test_nothing_of_it_is_seen_at_run_time(factor, W):
    factors = factor(W)
    assert isinstance(factors, Factorization)
    assert [field.name for field in dataclasses.fields(factors)][:3] == ["left", "diagonal", "right"]
    assert type(pickle.loads(pickle.dumps(factors))) is type(factors)  # noqa: S301
    assert type(factors.truncate(2)) is type(factors)
    assert not hasattr(factors, "__dict__") or "__orig_class__" not in vars(factors)


def test_annotations_can_be_read():
    assert typing.get_type_hints(ldu)["return"] == LDU[typing.get_type_hints(ldu)["W"]]
    first, second, *_ = pydoc.render_doc(ldu, renderer=pydoc.plaintext).splitlines()[2:]
    assert first.startswith("ldu(W: 'ArrayType', rank: 'int | None' = None, *, pivoting: 'Pivoting' = 'partial'")
    assert first.endswith("-> 'LDU[ArrayType]'")
    assert second.strip() == "Factor W = P L diag(z) U Q^T."
