"""The planner: what it takes, what it refuses, and that it says why."""

import importlib.util
from dataclasses import replace

import pytest
import torch

from lowrank_ldu.kernels import PLANS, Machine, Problem, choose_plan, ldu_linear, plan_costs, planner
from lowrank_ldu.kernels.triton_kernels import availability

CPU, CUDA = torch.device("cpu"), torch.device("cuda", 0)
# Round figures of a GPU, so that the choice can be seen without one.
GPU = Machine({torch.bfloat16: 2.5e14, torch.float32: 2.5e13}, bandwidth=2.8e12, call=2e-6, operator=1e-5)


@pytest.fixture(autouse=True)
def _nothing_remembered():
    planner._remembered.cache_clear()
    yield
    planner._remembered.cache_clear()


def training(tokens, m, n, r, **options):
    options = {"dtype": torch.float32, "device": CPU, "x_gradient": True, "delta_gradient": True} | options
    return Problem(tokens, m, n, r, **options)


def test_costs_are_of_the_plans():
    assert set(plan_costs(training(8, 4, 4, 2))) == set(PLANS) - {"auto"}


@pytest.mark.parametrize(
    ("problem", "plan"),
    [
        (training(1, 768, 768, 64), "reference"),  # calls decide
        (training(2048, 768, 768, 64), "hybrid"),
        (training(512, 768, 768, 64), "factored"),  # making the sum takes longer than it saves
        (training(2048, 768, 768, 64, dtype=torch.bfloat16), "factored"),  # the sum would be rounded
        (training(2048, 768, 768, 64, x_gradient=False, delta_gradient=False), "materialized"),
        (training(4096, 768, 768, 512), "materialized"),
        (training(4096, 768, 768, 768, packing=True, upper=True), "packed"),
        (training(4096, 768, 768, 768, packing=True, upper=True, delta_gradient=False), "materialized"),
        (training(4096, 768, 768, 768, rowwise=True), "factored"),
        (training(4096, 768, 768, 64, constant=False), "reference"),
    ],
)
def test_choice_on_the_cpu(problem, plan):
    machine = Machine({torch.float32: 96e9, torch.bfloat16: 96e9}, bandwidth=16e9, call=6e-6, operator=6e-5)
    assert choose_plan(problem, machine=machine).plan == plan


@pytest.mark.parametrize(
    ("problem", "plan"),
    [
        (training(25216, 768, 768, 64, dtype=torch.bfloat16, device=CUDA), "triton"),
        (training(8192, 4096, 4096, 64, dtype=torch.bfloat16, device=CUDA), "triton"),
        (training(8192, 4096, 4096, 4096, dtype=torch.bfloat16, device=CUDA), "materialized"),
        (training(8192, 4096, 4096, 64, dtype=torch.bfloat16, device=CUDA, rowwise=True), "triton"),
    ],
)
def test_choice_on_a_gpu(problem, plan, monkeypatch):
    monkeypatch.setattr("lowrank_ldu.kernels.planner.obstacle", lambda *_: None)
    assert choose_plan(problem, machine=GPU).plan == plan


def test_more_work_costs_more():
    small, large = (plan_costs(training(tokens, 768, 768, 64)) for tokens in (1000, 2000))
    assert all(large[plan] > small[plan] for plan in small)


def test_what_threads_and_narrow_products_cost():
    plain = Machine({torch.float32: 96e9}, bandwidth=16e9, call=6e-6, operator=6e-5)
    problem = training(4096, 768, 768, 768, packing=True, upper=True)
    before = plan_costs(problem, plain)
    meeting = plan_costs(problem, replace(plain, region=1e-3))
    for plan, cost in before.items():
        # Every product and pass takes the region's time at most, and packed meets otherwise.
        assert meeting[plan] == cost if plan == "packed" else cost < meeting[plan] <= cost + 20e-3
    narrow = plan_costs(problem, replace(plain, narrow=0.5))
    assert {plan for plan in before if narrow[plan] != before[plan]} == {"packed"}
    assert before["packed"] < narrow["packed"] <= 2 * before["packed"]
    assert plan_costs(problem, replace(plain, threads=16))["packed"] > before["packed"]
    # A product of nothing costs no meeting.
    small = training(1, 4, 4, 2)
    least = plan_costs(small, replace(plain, region=1.0))
    assert all(least[plan] <= 2 * cost for plan, cost in plan_costs(small, plain).items())


def test_where_narrow_products_are_slow_packed_is_not_taken():
    """As on processors whose large products are quicker by their wide vectors."""
    machine = Machine({torch.float32: 96e9}, bandwidth=16e9, call=6e-6, operator=6e-5)
    problem = training(6304, 768, 768, 768, packing=True, upper=True)
    assert choose_plan(problem, machine=machine).plan == "packed"
    assert choose_plan(problem, machine=replace(machine, narrow=0.7)).plan == "materialized"


def test_reasons():
    choice = choose_plan(training(8, 4, 4, 2))
    assert "factors of rank 2 do not hold the weight; accepted: full rank, 4 here" in choice.reasons["packed"]
    assert "no packing of this weight" in choose_plan(training(8, 4, 4, 4)).reasons["packed"]
    assert "the core is no diagonal" in choose_plan(training(8, 4, 4, 4, packing=True, block=2)).reasons["packed"]
    assert "on the CPU" in choice.reasons["triton"]
    with pytest.raises(ValueError, match="plan is 'fast'; accepted: 'auto', 'reference'"):
        choose_plan(training(8, 4, 4, 2), "fast")


class TestTritonWhereItCannotRun:
    def call(self, dtype=torch.float32):
        ones = torch.ones(2, 2, dtype=dtype)
        return ldu_linear(ones, ones, None, ones, ones, torch.ones(2), plan="triton")

    def test_on_the_cpu(self, monkeypatch):
        monkeypatch.delenv("TRITON_INTERPRET", raising=False)
        with pytest.raises(RuntimeError, match=r"plan 'triton' cannot run here: .* on the CPU"):
            self.call()

    def test_not_installed(self, monkeypatch):
        monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
        with pytest.raises(RuntimeError, match=r"triton is not installed: pip install 'lowrank-ldu\[triton\]'"):
            self.call()

    def test_dtypes(self, monkeypatch):
        monkeypatch.setenv("TRITON_INTERPRET", "1")
        with pytest.raises(RuntimeError, match="not for float64"):
            self.call(torch.float64)
        with pytest.raises(RuntimeError, match="interpreter computes bfloat16 products wrongly"):
            self.call(torch.bfloat16)

    def test_devices(self, monkeypatch):
        monkeypatch.setenv("TRITON_INTERPRET", "0")
        assert "'mps'" in availability.obstacle(torch.device("mps"), torch.float32)
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (7, 5))
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "Tesla T4")
        assert availability.obstacle(CUDA, torch.float16) == (
            "Tesla T4 has compute capability 7.5; the kernels need 8.0"
        )
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (9, 0))
        assert availability.obstacle(CUDA, torch.float16) is None


def test_unknown_devices_take_plain_products():
    problem = training(8, 4, 4, 2, device=torch.device("mps"))
    assert choose_plan(problem).plan == "factored"


def test_machine_of_this_device():
    machine = Machine.of(CPU)
    assert machine.rates[torch.float32] == pytest.approx(48e9 * torch.get_num_threads())
