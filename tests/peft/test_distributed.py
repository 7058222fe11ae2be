"""Two processes with half of each batch train what one process trains with the whole of it."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from distributed_worker import CASES, train

MODES = ["ddp", "fsdp1", "fsdp2"]
HERE = Path(__file__).parent


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """What two processes end with, for each case; both start once, since importing takes longest."""
    folder = tmp_path_factory.mktemp("distributed")
    path = os.pathsep.join([str(HERE.parent), *filter(None, [os.environ.get("PYTHONPATH")])])
    environment = {**os.environ, "PYTHONPATH": path, "GLOO_SOCKET_IFNAME": "lo", "OMP_NUM_THREADS": "1"}
    processes = [
        subprocess.Popen(
            [sys.executable, HERE / "distributed_worker.py", rank, folder / "meeting", folder / "results.pt", *MODES],
            env=environment,
            cwd=folder,
        )
        for rank in ("0", "1")
    ]
    assert [process.wait(timeout=120) for process in processes] == [0, 0]
    return torch.load(folder / "results.pt")


@pytest.mark.parametrize(("optimizer", "pivoting"), CASES)
@pytest.mark.parametrize("mode", MODES)
def test_two_processes_train_what_one_does(trained, mode, optimizer, pivoting):
    losses, state = trained[mode, optimizer, pivoting]
    expected_losses, expected = train("alone", optimizer, pivoting)
    torch.testing.assert_close(losses, expected_losses, rtol=0, atol=1e-6)
    assert set(state) == set(expected)
    for name, value in expected.items():
        torch.testing.assert_close(state[name], value, rtol=0, atol=1e-6)
    assert any(value.any() for name, value in expected.items() if name.endswith("offset"))
