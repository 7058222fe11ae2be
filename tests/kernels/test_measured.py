"""Measured speeds: once, kept whole or measured anew, never while a graph is recorded, and without side effects."""

import json
import subprocess
import sys
import threading

import pytest
import torch
from torch.fx.experimental.proxy_tensor import make_fx

from lowrank_ldu.kernels import Machine, Problem, choose_plan, measured, planner
from lowrank_ldu.kernels.measured import DTYPES, Figures, present_figures, read_figures, write_figures

CPU = torch.device("cpu")
FIGURES = Figures((4e10, 2e10, 1e10, 5e9), narrow=3e10, bandwidth=1e10, call=2e-6)
KEY = {"format": 1, "processor": "a"}
PROBLEM = Problem(2048, 768, 768, 64, torch.float32, CPU, True, True)


@pytest.fixture
def counted(monkeypatch, tmp_path):
    """Measuring switched on, without its products, and with a cache of its own; returns the calls."""
    calls = []

    def measure():
        calls.append(threading.current_thread())
        return FIGURES

    monkeypatch.delenv(measured.SWITCH, raising=False)
    monkeypatch.setattr(measured, "cache_folder", lambda: tmp_path / "cache")
    monkeypatch.setattr(measured, "_known", None)
    monkeypatch.setattr(measured, "measure", measure)
    planner._remembered.cache_clear()
    yield calls
    planner._remembered.cache_clear()


def test_figures_are_positive_and_take_little_time(monkeypatch):
    monkeypatch.setattr(measured, "_SECONDS", 0.0)
    state = torch.get_rng_state()
    with torch.autocast("cpu"), torch.device("meta"):
        found = measured.run_alone(measured.measure)
    assert len(found.rates) == len(DTYPES)
    assert all(each > 0 for each in (*found.rates, *found[1:]))
    assert torch.equal(torch.get_rng_state(), state)


def test_once_in_a_process_and_once_on_disk(counted, monkeypatch):
    assert present_figures() == present_figures() == FIGURES
    assert len(counted) == 1
    monkeypatch.setattr(measured, "_known", None)  # as in a new process
    assert present_figures() == FIGURES
    assert len(counted) == 1


def test_threads_measure_once(counted):
    threads = [threading.Thread(target=present_figures) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(counted) == 1


def test_plans_follow_the_measured_figures(counted):
    machine = Machine.of(CPU)
    assert len(counted) == 1
    assert machine.rates[torch.bfloat16] == 1e10 * torch.get_num_threads()
    assert machine.narrow == 0.75
    costs = choose_plan(PROBLEM).costs
    planner._remembered.cache_clear()
    assert costs == choose_plan(PROBLEM, machine=machine).costs


def test_only_auto_measures(counted):
    choose_plan(PROBLEM, "factored")
    assert not counted


@pytest.mark.parametrize("value", ["0", "off", "False", " no "])
def test_switched_off(counted, monkeypatch, value):
    monkeypatch.setenv(measured.SWITCH, value)
    assert present_figures() is None
    assert Machine.of(CPU).rates[torch.float32] == 48e9 * torch.get_num_threads()
    assert not counted


@pytest.mark.filterwarnings("ignore:`torch.jit.trace` is deprecated:DeprecationWarning")
def test_not_while_a_graph_is_recorded(counted):
    found = []

    def traced(x):
        found.append(present_figures())
        return x + 1

    make_fx(traced)(torch.ones(2))
    torch.func.vmap(traced)(torch.ones(2))
    torch.jit.trace(traced, torch.ones(2), check_trace=False)  # which calls it as it is
    torch.compile(lambda x: x + choose_plan(PROBLEM).costs["factored"], backend="eager", fullgraph=True)(torch.ones(2))
    assert set(found) == {None}
    assert not counted
    # What was chosen then is not what counts later.
    assert present_figures() == FIGURES


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        "null",
        json.dumps({"key": KEY}),
        json.dumps({"key": {"format": 0}, **FIGURES._asdict()}),
        json.dumps({"key": KEY, **FIGURES._replace(call=0.0)._asdict()}),
        json.dumps({"key": KEY, **FIGURES._replace(call="fast")._asdict()}),
        json.dumps({"key": KEY, **FIGURES._replace(call=float("nan"))._asdict()}),
        json.dumps({"key": KEY, **FIGURES._replace(rates=(1e9, 1e9))._asdict()}),
        json.dumps({"key": KEY, **FIGURES._replace(rates=5)._asdict()}),
        "[" * 100_000,
        b"\xff\xfe",
    ],
)
def test_damaged_files_are_not_taken(tmp_path, text):
    path = tmp_path / "speed.json"
    write_figures(FIGURES, path, KEY)
    assert read_figures(path, KEY) == FIGURES
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    assert read_figures(path, KEY) is None


def test_files_are_whole_or_not_there(tmp_path, monkeypatch):
    def interrupted(*_):
        raise KeyboardInterrupt

    path = tmp_path / "speed.json"
    monkeypatch.setattr(json, "dump", interrupted)
    with pytest.raises(KeyboardInterrupt):
        write_figures(FIGURES, path, KEY)
    assert list(tmp_path.iterdir()) == []
    monkeypatch.undo()
    (tmp_path / "file").write_text("")
    write_figures(FIGURES, tmp_path / "file" / "speed.json", KEY)  # no folder: the process alone keeps them


def test_every_machine_has_a_file_of_its_own(monkeypatch):
    path, key = measured._place()
    assert path.name.startswith("speed-1-")
    assert path.parent.name == "lowrank-ldu"
    assert key["torch"] == torch.__version__
    monkeypatch.setattr(measured, "_processor", lambda: "another/../one")
    other, _ = measured._place()
    assert other.parent == path.parent
    assert other != path


@pytest.mark.parametrize(
    ("system", "variable", "folder"),
    [
        ("linux", "XDG_CACHE_HOME", "{}/lowrank-ldu"),
        ("win32", "LOCALAPPDATA", "{}/lowrank-ldu"),
        ("darwin", "HOME", "{}/Library/Caches/lowrank-ldu"),
    ],
)
def test_cache_folders(monkeypatch, tmp_path, system, variable, folder):
    monkeypatch.setenv(variable, str(tmp_path))
    monkeypatch.setattr(measured.sys, "platform", system)
    assert measured.cache_folder().as_posix() == folder.format(tmp_path.as_posix())


def test_a_process_measures_and_remembers(tmp_path):
    """The whole of it, in a process of its own."""
    if sys.platform != "linux":
        pytest.skip("the variable is Linux's")
    program = (
        "from lowrank_ldu.kernels import Machine, measured; import torch; measured._SECONDS = 0;"
        "print(Machine.of(torch.device('cpu')).rates[torch.float32] > 0)"
    )
    environment = {"XDG_CACHE_HOME": str(tmp_path), "PATH": "", "OMP_NUM_THREADS": "1"}
    result = subprocess.run(
        [sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True
    )
    assert result.stdout == "True\n"
    assert len(list((tmp_path / "lowrank-ldu").glob("speed-*.json"))) == 1
