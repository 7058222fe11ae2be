"""How far the planner's choice is from the fastest plan, forward and backward.

pytest benchmarks/test_planner.py -s
"""

import time
from statistics import median

import pytest
import torch

from lowrank_ldu import ldu
from lowrank_ldu.kernels import PLANS, Problem, choose_plan, ldu_linear, pack

SHAPES = [(384, 384), (768, 768), (3072, 768), (768, 3072)]
RANKS = [8, 64, 256, None]
TOKENS = [1, 32, 512, 4096]
# Beyond it a case takes seconds.
LARGEST = 3e9


@pytest.fixture(scope="module")
def losses():
    """Of every case how many times the fastest plan the chosen one took; a summary at the end."""
    found = []
    yield found
    near = sum(loss <= 1.02 for loss in found)
    print(f"\nwithin 2 % of the fastest: {near} of {len(found)}; {max(found):.2f} times it at worst")


def spent(step, rounds):
    step()
    taken = []
    for _ in range(rounds):
        start = time.perf_counter()
        step()
        taken.append(time.perf_counter() - start)
    return median(taken)


@pytest.mark.parametrize("rank", RANKS)
@pytest.mark.parametrize("shape", SHAPES)
def test_choice(shape, rank, device, losses):
    (m, n), r = shape, rank or min(shape)
    weight = torch.randn(m, n, device=device) / n**0.5
    factors, bias = ldu(weight, r), torch.randn(m, device=device)
    packing = pack(weight, factors.left, factors.right, factors.diagonal, factors.permutation[:r]) if not rank else None
    for tokens in TOKENS:
        if tokens * m * n > LARGEST:
            continue
        x = torch.randn(tokens, n, device=device, requires_grad=True)
        delta, gradient = torch.zeros(r, device=device, requires_grad=True), torch.randn(tokens, m, device=device)
        problem = Problem(tokens, m, n, r, x.dtype, device, True, True, upper=True, packing=packing is not None)
        choice = choose_plan(problem)

        def step(plan, x=x, delta=delta, gradient=gradient):
            x.grad = delta.grad = None
            options = {"plan": plan, "packing": packing, "upper": True, "check_values": False}
            ldu_linear(x, weight, bias, factors.left, factors.right, delta, **options).backward(gradient)
            if device.type == "cuda":
                torch.cuda.synchronize(device)

        plans = [plan for plan in PLANS if plan in choice.costs]
        measured = {plan: spent(lambda plan=plan: step(plan), 7 if tokens > 1000 else 15) for plan in plans}
        times = ", ".join(f"{plan} {1e3 * seconds:.2f}" for plan, seconds in measured.items())
        loss = measured[choice.plan] / min(measured.values())
        losses.append(loss)
        print(f"\n{m} x {n}, r = {r}, T = {tokens}: {choice.plan}, {loss:.2f} times the fastest; ms: {times}", end="")
