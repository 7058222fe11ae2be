"""Training the core of W's own LDU through one layer, beside the frozen one and LoRA; and many cores in one batch.

pytest benchmarks/test_skeleton.py -k turns -s
pytest benchmarks/test_skeleton.py -k pairs --benchmark-group-by=group --benchmark-columns=median,iqr,rounds

The first measures all methods in turns, the frozen layer among them, which is what ratios are taken of: a neighbor on
the machine then meets all of them. It prints ratios of medians of wall time and of CPU time.
"""

import time
import warnings
from statistics import median

import pytest
import torch
from torch import nn

from lowrank_ldu import ldu
from lowrank_ldu.kernels import ldu_linear, ldu_linear_multi, skeleton_of

ADAPTERS = 1000
RANKS = (20, 64)
SHAPES = {
    "768 x 768, T = 2048": (768, 2048, torch.float32, 25),
    "4096 x 4096, T = 512": (4096, 512, torch.float32, 8),
    "768 x 768, T = 2048, bfloat16": (768, 2048, torch.bfloat16, 6),
}
PLANS = {"auto": True, "skeleton": True, "hybrid": True, "factored": False}


def lora(weight):
    peft = pytest.importorskip("peft")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        layer = nn.Sequential(nn.Linear(*weight.T.shape, dtype=weight.dtype, device=weight.device))
        return peft.get_peft_model(layer, peft.LoraConfig(r=8, target_modules=["0"]))


class Case:
    """One layer with its input and the gradient of its output."""

    def __init__(self, size, tokens, dtype, device):
        self.generator, self.device, self.dtype = torch.Generator().manual_seed(0), device, dtype
        self.weight, self.bias = (self.draw(size, size) / size**0.5).to(dtype), self.draw(size).to(dtype)
        self.x, self.gradient = (self.draw(tokens, size).to(dtype) for _ in range(2))
        self.x.requires_grad_()

    def draw(self, *shape):
        return torch.randn(*shape, generator=self.generator).to(self.device)

    def step(self, compute, parameters=()):
        def run():
            self.x.grad = None
            for parameter in parameters:
                parameter.grad = None
            compute().backward(self.gradient)
            if self.device.type == "cuda":
                torch.cuda.synchronize(self.device)

        return run

    def one(self, rank, factors, plan, skeleton):
        core = (1e-3 * self.draw(rank, rank)).requires_grad_()
        options = {"plan": plan, "skeleton": skeleton, "check_values": False}
        return self.step(lambda: ldu_linear(self.x, self.weight, self.bias, *factors, core, **options), [core])

    def batch(self, count, rank, factors, skeleton):
        tokens = len(self.x)
        cores = (1e-3 * self.draw(count, rank, rank)).requires_grad_()
        index = torch.randint(0, count, (tokens,), generator=self.generator).to(self.device)
        if tokens <= count:  # each row its own
            index = torch.arange(tokens, device=self.device)
        options = {"skeleton": skeleton, "check_values": False}
        constant = (self.weight, self.bias, *factors)
        return self.step(lambda: ldu_linear_multi(self.x, *constant, cores, index, **options), [cores])


def methods_of(size, tokens, dtype, device):
    """Steps of training, forward and backward, by name."""
    case = Case(size, tokens, dtype, device)
    adapted = lora(case.weight)
    trained = [parameter for parameter in adapted.parameters() if parameter.requires_grad]
    found = {
        "frozen": case.step(lambda: nn.functional.linear(case.x, case.weight, case.bias)),
        "PEFT LoRA r = 8": case.step(lambda: adapted(case.x), trained),
    }
    for rank in RANKS:
        terms = ldu(case.weight.float(), rank)
        factors = terms.left.to(dtype), terms.right.to(dtype)
        columns = torch.arange(rank, device=device)
        skeleton = skeleton_of(case.weight, factors[1], terms.permutation[:rank], factors[0], columns)
        for plan, used in PLANS.items():
            found[f"core r = {rank}, {plan}"] = case.one(rank, factors, plan, skeleton if used else None)
        for count in (1, ADAPTERS):
            found[f"{count} cores r = {rank} in a batch"] = case.batch(count, rank, factors, skeleton)
    return found


@pytest.fixture(scope="module")
def made():
    return {}


def steps(made, shape, device):
    if shape not in made:
        made.clear()
        size, tokens, dtype, _ = SHAPES[shape]
        made[shape] = methods_of(size, tokens, dtype, device)
    return made[shape]


NAMES = [
    "frozen",
    "PEFT LoRA r = 8",
    *(f"core r = {rank}, {plan}" for rank in RANKS for plan in PLANS),
    *(f"{count} cores r = {rank} in a batch" for rank in RANKS for count in (1, ADAPTERS)),
]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.filterwarnings("ignore")  # PEFT's, of models that are no transformers
def test_turns(shape, device, made):
    methods, rounds = steps(made, shape, device), SHAPES[shape][-1]
    walls, works = ({name: [] for name in methods} for _ in range(2))
    for turn in range(rounds + 2):
        for name, step in methods.items():
            before = time.process_time(), time.perf_counter()
            step()
            work, wall = time.process_time() - before[0], time.perf_counter() - before[1]
            if turn > 1:  # the first two warm up
                walls[name].append(wall)
                works[name].append(work)
    print(f"\n{shape}: frozen {1e3 * median(walls['frozen']):.1f} ms")
    for name in methods:
        wall, work = (median(taken[name]) / median(taken["frozen"]) for taken in (walls, works))
        print(f"  {name:32} {wall:.3f}, CPU time {work:.3f}")


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.filterwarnings("ignore")
def test_pairs(benchmark, shape, name, device, made):
    benchmark.group = f"forward and backward, {shape}, {device}"
    benchmark.pedantic(steps(made, shape, device)[name], rounds=SHAPES[shape][-1], warmup_rounds=2)
