"""Every kernel and every configuration, compiled for chips that are not here: it needs no GPU."""

import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

configurations = pytest.importorskip(
    "lowrank_ldu.kernels.triton_kernels.configurations", reason="triton is not installed"
)

pytestmark = pytest.mark.longer

SCRIPT = Path(__file__).with_name("compile_kernels.py")
CHIPS = {"sm_80": "mma.sync", "sm_90": "wgmma.mma_async", "sm_100": "tcgen05.mma", "gfx942": "v_mfma"}


@pytest.fixture(scope="module")
def compiled(tmp_path_factory):
    # In a process of its own: in this one Triton interprets.
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment["TRITON_CACHE_DIR"] = str(tmp_path_factory.mktemp("triton"))
    run = subprocess.run(
        [sys.executable, "-P", SCRIPT], env=environment, capture_output=True, text=True, check=False, timeout=1500
    )
    assert run.returncode == 0, run.stderr[-2000:]
    return [json.loads(line) for line in run.stdout.splitlines()]


def test_everything_compiles(compiled):
    assert [case for case in compiled if "error" in case] == []


def test_nothing_is_left_out(compiled):
    """Every kernel on every chip in every dtype, and every configuration somewhere."""
    kernels = {"project": 5, "expand": 6, "decode": 4, "skeleton": 4, "core": 1, "outer": 1}
    seen = Counter((case["kernel"], case["target"], case["dtype"]) for case in compiled)
    assert {key for key in seen if key[0] != "segment"} == {
        (kernel, chip, dtype) for kernel in kernels for chip in CHIPS for dtype in ("fp16", "bf16", "fp32")
    }
    assert {key for key in seen if key[0] == "segment"} == {("segment", chip, "fp32") for chip in CHIPS}
    for kernel, count in kernels.items():
        assert {case["configuration"] for case in compiled if case["kernel"] == kernel} == set(range(count))


def test_shared_memory_fits(compiled):
    """On each chip, for each configuration that is tried there: the estimate that leaves others out is an upper one."""
    too_much = [case for case in compiled if case["shared"] > configurations.SHARED_MEMORY[case["target"]]]
    assert too_much == []


def test_matrix_instructions(compiled):
    """In every product but those of full float32, for which NVIDIA's chips have none."""
    # Cores are applied to single rows, and their gradients summed in full float32.
    products = [case for case in compiled if case["kernel"] not in ("segment", "core", "outer")]
    for case in products:
        if case["dtype"] == "fp32" and case["precision"] == "ieee" and case["target"] != "gfx942":
            continue
        assert case["instructions"], case
        if case["kernel"] == "expand":
            assert CHIPS[case["target"]] in case["instructions"], case
