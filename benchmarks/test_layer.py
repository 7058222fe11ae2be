"""Training through one layer, beside the frozen one: every plan, LoRA, full fine-tuning, and the paper's formula.

pytest benchmarks/test_layer.py --benchmark-group-by=group --benchmark-columns=median,iqr,rounds
pytest benchmarks/test_layer.py --device cuda --benchmark-group-by=group --benchmark-columns=median,iqr,rounds

`lowrank-ldu bench` measures the same methods in turns, with their memory; here they are pairs for pytest-benchmark.
"""

import pytest
import torch

from lowrank_ldu.measuring import Case
from lowrank_ldu.measuring.methods import base_layer, methods_of

ADAPTERS = 1000
NAMES = [
    "frozen nn.Linear",
    "full fine-tuning",
    "PEFT LoRA r = 16",
    "naive (dense P, diag as a matrix)",
    *(
        f"lowrank-ldu, {plan}"
        for plan in ("auto", "reference", "factored", "hybrid", "materialized", "packed", "triton")
    ),
    "lowrank-ldu, 1 adapter in a batch, auto",
    f"lowrank-ldu, {ADAPTERS} adapters in a batch, auto",
]


def cases(device):
    if device.type == "cpu":
        return {"thin": Case(768, 768, 2048, 64), "full": Case(768, 768, 6304, 768)}
    return {
        "thin": Case(768, 768, 25216, 64),
        "full": Case(768, 768, 25216, 768),
        "wide": Case(4096, 4096, 8192, 64),
        "wide, full": Case(4096, 4096, 8192, 4096),
    }


@pytest.fixture(scope="module")
def made():
    return {}


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("shape", ["thin", "full", "wide", "wide, full"])
@pytest.mark.filterwarnings("ignore")  # PEFT's, of models that are no transformers
def test_forward_and_backward(benchmark, device, made, shape, name):
    if shape not in cases(device):
        pytest.skip("takes minutes on a CPU; lowrank-ldu bench --preset llama measures it")
    case = cases(device)[shape]
    dtype = torch.float32 if device.type == "cpu" else torch.bfloat16
    if shape not in made:
        made.clear()
        base = base_layer(case, dtype, device)
        made[shape] = {
            f"{method.name}, {method.plan}" if method.plan else method.name: method.module
            for method in methods_of(base, case, ADAPTERS)
        }
    module = made[shape][name]
    x = torch.randn(case.tokens, case.in_features, device=device, dtype=dtype, requires_grad=True)
    gradient = torch.randn(case.tokens, case.out_features, device=device, dtype=dtype)

    def step():
        x.grad = None
        for parameter in module.parameters():
            parameter.grad = None
        module(x).backward(gradient)
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    try:
        step()
    except RuntimeError as error:
        if "cannot run here" not in str(error):
            raise
        pytest.skip(str(error))
    benchmark.group = f"forward and backward, {case.title}, {str(dtype).removeprefix('torch.')}, {device}"
    benchmark.pedantic(step, rounds=15, warmup_rounds=3)
