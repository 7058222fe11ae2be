"""Surveys by the workers of a real Dask cluster: their figures are those of this process, whoever dies meanwhile."""

import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
import types

import pytest
from distributed import KilledWorker, LocalCluster
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner
from weights import weight

from lowrank_ldu.analysis import (
    CompareOptions,
    SurveyOptions,
    analyze_checkpoint,
    compare_checkpoints,
    connect,
    examine_claims,
)
from lowrank_ldu.analysis.engine import cluster as cluster_module
from lowrank_ldu.analysis.engine.cluster import Workers
from lowrank_ldu.analysis.engine.survey import _elsewhere
from lowrank_ldu.checkpoints.weights import open_weights
from lowrank_ldu.cli.app import app
from lowrank_ldu.errors import ClusterError

# Processes of their own, by the dozen.
pytestmark = pytest.mark.longer

OPTIONS = SurveyOptions(ranks=(2, 4), threads=1)
LORA = {"A": (2, 80), "B": (91, 2)}  # of w1
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1"}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    path = tmp_path_factory.mktemp("shared") / "model.safetensors"
    matrices = {f"w{number}": weight(90 + number, 80, seed=number) for number in range(16)}
    save_file(matrices | {"experts.up": weight(2, 30, 40), "bias": weight(4)}, path)
    return path


def empty_cluster():
    # Without the address a fixed port is asked for, and its being in use is a warning.
    return LocalCluster(n_workers=0, host="127.0.0.1", scheduler_port=0, dashboard_address="127.0.0.1:0")


@pytest.fixture(scope="module")
def scheduler():
    with empty_cluster() as cluster:
        yield cluster.scheduler


@pytest.fixture(scope="module")
def start_worker(scheduler):
    """Processes of their own, without the guard that would start them again."""
    processes = []

    def start():
        command = [sys.executable, "-P", "-m", "distributed.cli.dask_worker", scheduler.address]
        options = ["--nthreads", "1", "--no-nanny", "--no-dashboard", "--host", "127.0.0.1"]
        processes.append(subprocess.Popen([*command, *options], stderr=subprocess.DEVNULL, env=ENVIRONMENT))
        return processes[-1]

    yield start
    for process in processes:
        process.kill()
        process.wait()


@pytest.fixture(scope="module")
def workers(start_worker):
    return [start_worker(), start_worker()]


@pytest.fixture(scope="module")
def engine(scheduler, workers):
    with connect(scheduler.address) as engine:
        engine._client.wait_for_workers(len(workers), timeout=120)
        yield engine


def without_times(analysis):
    """Everything that a report has, but for what two runs never share."""

    def strip(value):
        if isinstance(value, dict):
            return {key: strip(item) for key, item in value.items() if "seconds" not in str(key)}
        return [strip(item) for item in value] if isinstance(value, list | tuple) else value

    return [strip(dataclasses.asdict(tensor)) for tensor in analysis.results]


def names_in(journal):
    return [json.loads(line)["result"]["name"] for line in journal.read_text().splitlines()[1:]]


def test_a_killed_worker_loses_nothing_and_repeats_nothing(checkpoint, engine, workers, tmp_path):
    journal = tmp_path / "journal"
    states = []

    def kill_at_the_first_result(state):
        states.append(state)
        if state.finished == 1:
            # Both have work at this moment, and more is waiting.
            workers[0].send_signal(signal.SIGKILL)
            workers[0].wait()

    analysis = analyze_checkpoint(checkpoint, OPTIONS, kill_at_the_first_result, journal=journal, engine=engine)
    local = analyze_checkpoint(checkpoint, OPTIONS)
    assert without_times(analysis) == without_times(local)
    assert sorted(names_in(journal)) == sorted(tensor.name for tensor, _ in local.matrices)
    assert analysis.environment.engine == "dask, workers: 2, threads: 2"
    assert local.environment.engine == "local, threads: 1"
    assert states[0].running == ("w15", "w14")
    assert (states[-1].finished, states[-1].fraction) == (18, 1.0)
    assert all(tensor.seconds > 0 for tensor, _ in analysis.matrices)


@pytest.mark.usefixtures("engine")
def test_claims_go_on_by_a_cluster(checkpoint, scheduler, tmp_path):
    """What this process began: the matrices of two shapes, of which one is in the journal."""

    def stop(state):
        if state.finished == 2:
            raise KeyboardInterrupt

    out = tmp_path / "out"
    chosen = ["--select", "^w[01]$", "--rank", "2", "--engine", "dask", "--scheduler", scheduler.address]
    options = SurveyOptions(ranks=2, mode="exact", select="^w[01]$", threads=1)
    with pytest.raises(KeyboardInterrupt):
        examine_claims(checkpoint, options=options, journal=tmp_path / "out.journal", progress=stop)
    assert names_in(tmp_path / "out.journal") == ["w1"]
    done = CliRunner().invoke(app, ["claims", str(checkpoint), "--out", str(out), *chosen, "--resume"])
    assert done.exit_code == 0, done.output
    content = json.loads((out / "claims.json").read_text())
    assert content["environment"]["engine"].startswith("dask, workers: ")
    assert {case["tensor"] for case in content["claims"][1]["findings"][0]["matrices"]} == {"w0", "w1"}
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


@pytest.mark.usefixtures("engine")
def test_a_comparison_is_that_of_this_process(checkpoint, scheduler, engine, tmp_path):
    """Pairs by threads of a cluster, of files and of the pieces of a stack, and of an adapter's updates."""
    tuned = tmp_path / "tuned.safetensors"
    changed = {name: 1.5 * values if values.ndim > 1 else values for name, values in load_file(checkpoint).items()}
    save_file({f"model.{name}": values for name, values in changed.items()}, tuned)
    lora = tmp_path / "lora"
    lora.mkdir()
    (lora / "adapter_config.json").write_text('{"peft_type": "LORA", "r": 2, "lora_alpha": 2, "target_modules": ["w"]}')
    pairs = {f"base_model.model.w1.lora_{side}.weight": weight(*shape) for side, shape in LORA.items()}
    save_file(pairs, lora / "adapter_model.safetensors")
    options = CompareOptions(ranks=(2, 4), threads=1)
    for other, count in ((tuned, 18), (lora, 1)):
        journal = tmp_path / f"{other.stem}.journal"
        there = compare_checkpoints(checkpoint, other, options, journal=journal, engine=engine)
        assert without_times(there) == without_times(compare_checkpoints(checkpoint, other, options))
        assert len(there.matrices) == count
        assert there.environment.engine.startswith("dask, workers: ")
        assert sorted(names_in(journal)) == sorted(tensor.name for tensor, _ in there.matrices)
        # What a cluster began this process goes on with.
        again = compare_checkpoints(checkpoint, other, options, journal=journal, resume=True)
        assert without_times(again) == without_times(there)
    command = ["compare", str(checkpoint), str(tuned), "--rank", "2", "--out", str(tmp_path / "out")]
    done = CliRunner().invoke(app, [*command, "--engine", "dask", "--scheduler", scheduler.address])
    assert done.exit_code == 0, done.output
    content = json.loads((tmp_path / "out" / "compare.json").read_text())
    assert content["environment"]["engine"].startswith("dask, workers: ")


def test_a_worker_that_does_not_see_the_checkpoint_says_so(tmp_path, engine):
    path = tmp_path / "model.safetensors"
    save_file({"a": weight(5, 4), "b": weight(6, 4)}, path)
    with open_weights(path) as reader:
        executor = _elsewhere(reader, OPTIONS, engine)
        path.rename(tmp_path / "elsewhere.safetensors")
        with pytest.raises(
            ClusterError, match=r"a worker .*model.safetensors: no such file.* same path on every worker"
        ):
            list(executor.run(reader.tensors))


def test_a_worker_that_sees_another_checkpoint_says_so(tmp_path, engine):
    path = tmp_path / "model.safetensors"
    save_file({"a": weight(5, 4)}, path)
    with open_weights(path) as reader:
        executor = _elsewhere(reader, OPTIONS, engine)
        save_file({"a": weight(5, 8)}, path)
        with pytest.raises(ClusterError, match="its files have another size or time of change"):
            list(executor.run(reader.tensors))


def test_a_worker_of_another_version_says_so(checkpoint, engine, monkeypatch):
    monkeypatch.setattr("lowrank_ldu.__version__", "9.9.9")
    with pytest.raises(ClusterError, match=r"a worker has lowrank-ldu .*; accepted: 9\.9\.9, as here"):
        analyze_checkpoint(checkpoint, OPTIONS, engine=engine)


@pytest.mark.parametrize("module", [cluster_module.__name__, "a_module_of_this_process"])
def test_a_worker_that_lacks_the_task_says_so(checkpoint, engine, workers, monkeypatch, module):
    """It has an older copy, or none: here the task is in this process's modules alone."""
    monkeypatch.setitem(sys.modules, "a_module_of_this_process", types.ModuleType("a_module_of_this_process"))
    later = types.FunctionType(until.__code__, {}, "later")
    later.__module__, later.__qualname__ = module, "later"
    monkeypatch.setattr(sys.modules[module], "later", later, raising=False)
    with (
        open_weights(checkpoint) as reader,
        pytest.raises(
            ClusterError,
            match=r"the worker tcp://.* cannot load what it has to do \((Can't get attribute|No module named)",
        ),
    ):
        list(engine.executor(later, None).run(reader.tensors[:1]))
    # None has gone.
    assert len(engine._client.nthreads()) == sum(worker.poll() is None for worker in workers) > 0


def test_a_bug_keeps_its_exception(engine):
    with pytest.raises(TypeError, match="unhashable"):
        list(Workers(engine._client, "here", {}.__contains__, None).run([[]]))


def test_what_kills_every_worker_is_a_reason():
    executor = Workers(None, "here", None, lambda info, reason: (info, reason))
    killed = KilledWorker("task", None, 3)
    outcome = executor._outcome("w0", "error", (KilledWorker, killed, None))
    assert outcome == ("w0", "error: 4 workers died when they were at it, for want of memory perhaps")


def test_a_lost_scheduler_is_named():
    with pytest.raises(ClusterError, match="scheduler 'here': the connection to it is lost"):
        Workers(None, "here", None, None)._outcome("w0", "cancelled", None)


def until(condition, seconds=120):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


@pytest.mark.usefixtures("engine")
def test_ctrl_c_leaves_a_journal_and_no_tasks(checkpoint, scheduler, tmp_path):
    out, journal = tmp_path / "out", tmp_path / "out.journal"
    options = ["analyze", str(checkpoint), "--out", str(out), "--rank", "2", "--rank", "4"]
    main = [sys.executable, "-P", "-W", "error", "-c", "from lowrank_ldu.cli import main; main()"]
    with subprocess.Popen(
        [*main, *options, "--engine", "dask", "--scheduler", scheduler.address],
        stderr=subprocess.PIPE,
        text=True,
        env=ENVIRONMENT,
    ) as process:
        until(lambda: journal.exists() and journal.read_bytes().count(b"\n") > 2)
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=60)
    assert process.returncode == 130, errors
    assert errors.strip().endswith("out.journal has the results so far; --resume goes on from there\ninterrupted")
    assert "Traceback" not in errors
    assert 0 < len(names_in(journal)) < 18
    until(lambda: not any(key.startswith("lowrank-ldu") for key in scheduler.tasks))
    resumed = analyze_checkpoint(checkpoint, OPTIONS, journal=journal, resume=True)
    assert without_times(resumed) == without_times(analyze_checkpoint(checkpoint, OPTIONS))


def test_no_scheduler_and_no_workers_are_one_line(checkpoint, tmp_path, monkeypatch):
    monkeypatch.setattr(cluster_module, "CONNECT_SECONDS", 0.2)
    monkeypatch.setattr(cluster_module, "WORKERS_SECONDS", 0.2)
    out = ["analyze", str(checkpoint), "--out", str(tmp_path / "out"), "--engine", "dask", "--scheduler"]
    for address in ("tcp://127.0.0.1:1", "nowhere", "http://127.0.0.1:1"):
        refused = CliRunner().invoke(app, [*out, address])
        assert refused.exit_code == 2
        assert refused.stderr.startswith(f"error: scheduler is '{address}', which cannot be reached (")
        assert refused.stderr.count("\n") == 1
    with empty_cluster() as empty:
        refused = CliRunner().invoke(app, [*out, empty.scheduler_address])
    assert refused.exit_code == 2
    assert "has no workers after 0.2 s; start some with `dask worker tcp://127.0.0.1:" in refused.stderr
    assert refused.stderr.count("\n") == 1
    assert not list(tmp_path.iterdir())
