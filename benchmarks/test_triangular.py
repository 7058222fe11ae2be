"""Of what the packed plan is made: a product, the same without the zero blocks of a triangular factor, P as a gather.

pytest benchmarks/test_triangular.py --benchmark-columns=median,iqr,rounds
"""

import pytest
import torch

from lowrank_ldu.kernels import packed

TOKENS, SIZE = 6304, 768


@pytest.mark.parametrize("part", ["dense product", "projection", "expansion", "gather"])
def test_parts(benchmark, device, part):
    x = torch.randn(TOKENS, SIZE, device=device)
    upper, out = torch.randn(SIZE, SIZE, device=device).triu(), torch.empty(TOKENS, SIZE, device=device)
    order = torch.randperm(SIZE, device=device).expand(TOKENS, SIZE)
    steps = {
        "dense product": lambda: torch.mm(x, upper.T, out=out),
        "projection": lambda: packed.project(x, upper, out),
        "expansion": lambda: packed.expand(x, upper, out),
        "gather": lambda: torch.gather(x, 1, order, out=out),
    }

    def step():
        steps[part]()
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    benchmark.group = f"triangular, {TOKENS} x {SIZE}, {device}"
    benchmark.pedantic(step, rounds=15, warmup_rounds=3)
