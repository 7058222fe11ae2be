"""What a user waits for: the analysis of a real checkpoint, and the import.

pytest benchmarks --benchmark-only --benchmark-group-by=group --benchmark-columns=median,iqr,rounds -s
"""

import json
import resource
import subprocess
import sys
from pathlib import Path

from minilm import checkpoint

COMMAND = Path(sys.executable).with_name("lowrank-ldu")


def test_analyze_all_minilm(benchmark, tmp_path):
    """All 2-D weights of all-MiniLM-L6-v2 at ranks 8, 64 and full: partial, complete, refit, SVD, quick PiSSA."""
    benchmark.group = "lowrank-ldu analyze, all-MiniLM-L6-v2"
    out = tmp_path / "report"

    def run():
        command = [COMMAND, "analyze", checkpoint(), "--rank", "8", "--rank", "64", "--out", out, "--overwrite"]
        subprocess.run(command, check=True, capture_output=True)

    checkpoint()
    benchmark.pedantic(run, rounds=1)
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1e6
    benchmark.extra_info["peak_resident_gb"] = peak
    analysis = json.loads((out / "analysis.json").read_text())
    matrices = sum(tensor["analysis"] is not None for tensor in analysis["tensors"])
    print(f"\nanalyze: {matrices} matrices, {benchmark.stats['median']:.1f} s, peak resident memory {peak:.2f} GB")


class TestImport:
    """`import lowrank_ldu` beside what it stands on."""

    def run(self, benchmark, tmp_path, statement):
        benchmark.group = "import in a fresh interpreter"
        command = [sys.executable, "-c", statement]
        benchmark.pedantic(lambda: subprocess.run(command, check=True, cwd=tmp_path), rounds=9, warmup_rounds=1)

    def test_numpy_and_scipy_linalg(self, benchmark, tmp_path):
        self.run(benchmark, tmp_path, "import numpy, scipy.linalg")

    def test_lowrank_ldu_too(self, benchmark, tmp_path):
        self.run(benchmark, tmp_path, "import numpy, scipy.linalg, lowrank_ldu")
