"""Two processes train what one process trains with twice the batch, and wait for what one of them does."""

import json
import os
import subprocess
import sys

import pytest
from tiny_text_models import data_set, save_model

from lowrank_ldu.finetuning.processes import of_first

SETTINGS = ("r=4", "max_length=16", "max_steps=8", "logging_steps=1", "learning_rate=1e-2")

OF_FIRST = """
import os, sys
from torch import distributed
from lowrank_ldu.finetuning.processes import of_first

distributed.init_process_group("gloo", init_method=f"file://{sys.argv[1]}", rank=int(os.environ["RANK"]), world_size=2)
print([of_first(lambda: {"computed by": os.environ["RANK"], "call": call}) for call in range(2)])
distributed.barrier()
"""


@pytest.mark.longer
def test_what_the_first_process_computes_all_have(tmp_path):
    command = [sys.executable, "-c", OF_FIRST, str(tmp_path / "store")]
    started = [
        subprocess.Popen(
            command,
            env={**os.environ, "RANK": rank, "GLOO_SOCKET_IFNAME": "lo", "OMP_NUM_THREADS": "1"},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in "01"
    ]
    for process in started:
        told, error = process.communicate(timeout=120)
        assert process.returncode == 0, error
        assert told == f"{[{'computed by': '0', 'call': call} for call in range(2)]}\n"


def test_one_process_computes_itself():
    assert of_first(lambda: 3) == 3


@pytest.mark.longer
def test_two_processes_train_what_one_does(tmp_path):
    save_model(tmp_path / "model", hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
    data_set().save_to_disk(tmp_path / "data")
    words = [
        "finetune",
        "glue",
        "--task",
        "sst2",
        "--method",
        "lora",
        "--seed",
        "0",
        "--model",
        "model",
        "--data",
        "data",
    ]
    words += [word for setting in SETTINGS for word in ("--set", setting)]
    # A free port is found by the launcher.
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    environment = {
        **os.environ,
        "HF_HUB_OFFLINE": "1",
        "ACCELERATE_USE_CPU": "true",
        "GLOO_SOCKET_IFNAME": "lo",
        "OMP_NUM_THREADS": "1",
    }
    losses = {}
    for name, before, size in (("two", launch, 4), ("one", [], 8)):
        command = [sys.executable, *before, "-m", "lowrank_ldu", *words, "--out", name]
        command += ["--set", f"per_device_train_batch_size={size}"]
        done = subprocess.run(command, check=False, capture_output=True, text=True, env=environment, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        assert done.stdout.count("written to") == 1
        folder = tmp_path / name / "sst2" / "seed-0"
        entries = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
        assert [entry["step"] for entry in entries if "loss" in entry] == list(range(1, 9))
        assert len(json.loads((folder / "manifest.json").read_bytes())["starts"]) == 1
        losses[name] = [entry.get("loss", entry.get("eval_loss")) for entry in entries]
    assert losses["two"] == pytest.approx(losses["one"], rel=1e-3)
