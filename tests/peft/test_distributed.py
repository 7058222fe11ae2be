"""Two processes with half of each batch train what one process trains with the whole of it."""

import os
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest
import torch
from distributed_worker import CASES, train
from half_precision import assert_as_near

MODES = ["ddp", "fsdp1", "fsdp2"]
HERE = Path(__file__).parent


pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """What two processes end with, for each case."""
    folder = tmp_path_factory.mktemp("distributed")
    path = os.pathsep.join([str(HERE.parent / "tools"), *filter(None, [os.environ.get("PYTHONPATH")])])
    environment = {**os.environ, "PYTHONPATH": path, "GLOO_SOCKET_IFNAME": "lo", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, HERE / "distributed_worker.py", folder / "meeting", folder / "results.pt", *MODES]
    subprocess.run(command, env=environment, cwd=folder, check=True, timeout=120)
    return torch.load(folder / "results.pt")


@cache
def alone(optimizer, pivoting):
    """What one process trains, with the rows of each batch in several orders.

    Sums over halves of a batch round differently, and AdamW divides each gradient by its own size: the rounding of one
    that is nearly zero is carried far, in one order and not in the next. The worst of some orders is what counts.
    """
    return [train("alone", optimizer, pivoting, rows=torch.arange(8).roll(shift)) for shift in range(8)]


@pytest.mark.parametrize(("optimizer", "pivoting"), CASES)
@pytest.mark.parametrize("mode", MODES)
def test_two_processes_train_what_one_does(trained, mode, optimizer, pivoting):
    losses, state = trained[mode, optimizer, pivoting]
    exact_losses, exact = train("alone", optimizer, pivoting, dtype=torch.float64)
    runs = alone(optimizer, pivoting)
    expected_losses, expected = runs[0]
    assert_as_near(losses, exact_losses, expected_losses, exact_losses)
    assert set(state) == set(expected)
    floating = [name for name, value in expected.items() if value.is_floating_point()]

    def numbers(state):
        return torch.cat([state[name].flatten() for name in floating])

    plain = torch.stack([numbers(run) for _, run in runs])
    assert_as_near(numbers(state), numbers(exact), plain, numbers(exact).expand_as(plain))
    assert all(torch.equal(state[name], value) for name, value in expected.items() if name not in floating)
    assert any(value.any() for name, value in expected.items() if name.endswith("offset"))
