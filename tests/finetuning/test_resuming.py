"""Processes are killed at any moment of a run, and what comes after goes on with the same numbers."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from lowrank_ldu.errors import RunDirectoryError
from lowrank_ldu.finetuning.checkpoints import is_whole, mark_whole, remove_incomplete, whole_checkpoints
from lowrank_ldu.finetuning.run_directory import RunDirectory

HERE = Path(__file__).parent
KILLS = 10
# What kinds of tasks share is tried with texts each time, and each kind in the longer tests.
TASKS = ["sst2", *(pytest.param(task, marks=pytest.mark.longer) for task in ("images", "alpaca", "concept"))]


def log_of(folder):
    lines = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    return [{name: value for name, value in line.items() if name != "seconds"} for line in lines]


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_run_that_is_killed_again_and_again_ends_bit_for_bit_as_one_that_is_not(task, tmp_path):
    path = os.pathsep.join([str(HERE.parent / "tools"), *filter(None, [os.environ.get("PYTHONPATH")])])
    command = [sys.executable, HERE / "killed_run.py", tmp_path, str(KILLS), task]
    cache = {"HF_DATASETS_CACHE": str(tmp_path / "cache")}
    environment = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", **cache}
    done = subprocess.run(command, check=True, capture_output=True, text=True, env=environment, cwd=tmp_path)
    assert json.loads(done.stdout)["statuses"] == [0, *[-9] * KILLS, 0]
    whole, killed = (tmp_path / name / task / "seed-5" for name in ("whole", "killed"))
    starts = [start["from_step"] for start in json.loads((killed / "manifest.json").read_bytes())["starts"]]
    # Not all from the same moment, one of them between the ends of epochs, five steps each.
    assert len(set(starts)) >= 3
    assert any(step % 5 for step in starts)
    assert log_of(killed) == log_of(whole)
    results = [json.loads((folder / "metrics.json").read_bytes()) for folder in (whole, killed)]
    for key in ("metrics", "best_step", "steps", "numbers", "adapter_bytes"):
        assert results[0][key] == results[1][key]
    for file in ("adapter/adapter_model.safetensors", "checkpoints/checkpoint-15/trained.safetensors"):
        first, second = (load_file(folder / file) for folder in (whole, killed))
        assert first.keys() == second.keys()
        assert all(torch.equal(first[name], second[name]) for name in first)
    images = [
        {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*.png")}
        for folder in (whole, killed)
    ]
    assert images[0] == images[1]
    assert bool(images[0]) == (task == "concept")
    moments = [
        torch.load(folder / "checkpoints" / "checkpoint-15" / "optimizer.pt")["state"] for folder in (whole, killed)
    ]
    assert moments[0].keys() == moments[1].keys()
    for key, state in moments[0].items():
        assert all(torch.equal(value, moments[1][key][name]) for name, value in state.items())


def checkpoint(folder, step):
    path = folder / f"checkpoint-{step}"
    (path / "adapter").mkdir(parents=True)
    (path / "adapter" / "weights").write_bytes(b"numbers" * step)
    (path / "trainer_state.json").write_text("{}")
    return path


def test_half_a_checkpoint_is_never_taken_for_a_whole_one(tmp_path):
    whole, unmarked, shortened, without, changed = (checkpoint(tmp_path, step) for step in (1, 2, 3, 4, 10))
    for each in (whole, shortened, without, changed):
        mark_whole(each)
    (shortened / "adapter" / "weights").write_bytes(b"numb")
    (without / "trainer_state.json").unlink()
    (changed / "adapter" / "weights").write_bytes(b"NUMBERS" * 10)
    (tmp_path / "checkpoint-x").mkdir()
    assert whole_checkpoints(tmp_path) == [whole]
    assert not any(map(is_whole, (unmarked, shortened, without, changed)))
    remove_incomplete(tmp_path)
    assert {each.name for each in tmp_path.iterdir()} == {"checkpoint-1", "checkpoint-x"}
    mark = whole / "whole.json"
    mark.write_bytes(mark.read_bytes()[:-5])
    assert not is_whole(whole)


def test_the_log_is_cut_to_the_step_that_a_run_goes_on_from(tmp_path):
    directory = RunDirectory(tmp_path)
    lines = [{"step": step, "seconds": 1.5 * step} for step in (1, 2, 3)]
    directory.log.write_text("".join(f"{json.dumps(line)}\n" for line in lines) + '{"step": 2, "sec')
    assert directory.shorten_log(2) == 3.0
    assert [json.loads(line) for line in directory.log.read_text().splitlines()] == lines[:2]
    directory.log.unlink()
    assert directory.shorten_log(0) == 0.0


def test_other_data_and_another_model_are_refused(tmp_path):
    directory = RunDirectory(tmp_path)
    directory.begin({"seed": 0}, {"model": "a", "data": "b"}, {})
    directory.begin({"seed": 0}, {"model": "a", "data": "b"}, {})
    with pytest.raises(RunDirectoryError, match=r"other data, models or processes \(data was 'b' and is 'c'\)"):
        directory.begin({"seed": 0}, {"model": "a", "data": "c"}, {})


def test_folders_that_are_in_use_or_not_a_run(tmp_path):
    directory = RunDirectory(tmp_path / "run")
    with directory.locked():
        directory.check({"seed": 0})
        with pytest.raises(RunDirectoryError, match="run: another process trains here"), directory.locked():
            pass
    (directory.path / "letter.txt").write_text("")
    with pytest.raises(
        RunDirectoryError, match=r"run: holds letter.txt, and no run; accepted: a new or an empty folder"
    ):
        directory.check({"seed": 0})
