"""Threads that use the package for the first time at the same moment, in processes that have just begun."""

import copy
import subprocess
import sys
import types

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from lowrank_ldu import diagnose, ldu
from lowrank_ldu.backend import backend_of
from lowrank_ldu.diagnostics import Examination, Target

_AT_ONCE = """
import sys, threading
import numpy as np
{imports}

threads, failed = 6, []
gate = threading.Barrier(threads)

def work(seed):
    W = np.random.default_rng(seed).standard_normal((11, 8))
    gate.wait()
    try:
        {work}
    except BaseException as error:
        failed.append(repr(error))

crew = [threading.Thread(target=work, args=(seed,)) for seed in range(threads)]
for thread in crew:
    thread.start()
for thread in crew:
    thread.join()
sys.exit("\\n".join(failed) or None)
"""


def run(imports, work):
    code = _AT_ONCE.format(imports=imports, work=work)
    done = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("imports", "work"),
    [
        ("from lowrank_ldu import diagnose, ldu", "diagnose(W, ldu(W), [1, 8])"),
        (
            "import torch\nfrom lowrank_ldu import ldu, svd\nfrom lowrank_ldu.diagnostics import Examination, Target",
            "W = torch.from_numpy(W); Examination(Target(W, singular_values=svd(W).diagonal), ldu(W)).curve()",
        ),
        (
            "import torch\nfrom lowrank_ldu import ldu",
            "ldu(torch.from_numpy(W), 3, pivoting='randomized').refit(torch.from_numpy(W))",
        ),
        (
            "import lowrank_ldu",
            "lowrank_ldu.ldu_at_pivots(W, lowrank_ldu.ldu(W).permutation[:8]).residual(W)",
        ),
    ],
    ids=["diagnose", "examination", "refit", "known-pivots"],
)
def test_first_use_by_several_threads(imports, work):
    run(imports, work)


def test_first_use_of_two_libraries():
    pytest.importorskip("jax")
    run(
        "import jax, torch\nfrom lowrank_ldu import diagnose, ldu",
        "W = (jax.numpy.asarray, torch.from_numpy, np.asarray)[seed % 3](W.astype(np.float32)); diagnose(W, ldu(W))",
    )


# Of the command analyze, all but its report.
COMMANDS = {
    "claims": "import sys; from lowrank_ldu.cli import main; sys.argv[1:1] = ['claims', '--rank', '3']; main()",
    "analyze": "import sys; from lowrank_ldu.analysis import SurveyOptions, analyze; "
    "analyze(sys.argv[1], options=SurveyOptions(ranks=(3,), threads=3))",
}


@pytest.mark.parametrize("command", COMMANDS)
def test_commands_on_small_matrices(command, tmp_path):
    torch.manual_seed(0)
    checkpoint = tmp_path / "model.safetensors"
    save_file({f"block.{i}.weight": torch.randn(9, 7) for i in range(6)}, checkpoint)
    code = [sys.executable, "-P", "-c", COMMANDS[command], str(checkpoint)]
    done = subprocess.run(code, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("convert", [np.asarray, torch.from_numpy], ids=["numpy", "torch"])
def test_copies_of_what_was_measured_are_of_the_same_library(convert):
    W = convert(np.random.default_rng(0).standard_normal((6, 5)))
    target, factors = copy.deepcopy(Target(W)), copy.deepcopy(ldu(W))
    assert backend_of(W) is backend_of(W)
    assert Examination(target, factors).at(3) == diagnose(W, factors, [3])[0]


def test_a_library_that_another_thread_is_importing(monkeypatch):
    class Unknown:
        pass

    monkeypatch.setitem(sys.modules, "cupy", types.ModuleType("cupy"))
    with pytest.raises(TypeError, match="Unknown; accepted: an array of numpy, torch, jax, cupy"):
        backend_of(Unknown())
