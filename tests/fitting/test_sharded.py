"""A model that is divided over processes is fitted to the batches of all of them."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch


@pytest.mark.longer
@pytest.mark.skipif(not torch.distributed.is_available(), reason="this torch has no process groups")
def test_two_processes_find_what_one_does(tmp_path):
    worker = Path(__file__).with_name("sharded_worker.py")
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    processes = [
        subprocess.Popen(
            [sys.executable, worker, str(rank), tmp_path / "meeting"],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(2)
    ]
    for process in processes:
        output, _ = process.communicate(timeout=300)
        assert process.returncode == 0, output
