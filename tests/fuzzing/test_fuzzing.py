"""Damaged inputs of every format are read, in part or whole, or refused in one line: never anything else."""

import os
import signal
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="needs /proc")
for package in ("gguf", "h5py", "onnx", "peft"):
    pytest.importorskip(package)
sys.path.insert(0, str(Path(__file__).parent))

from formats import FORMATS  # noqa: E402
from harness import attempt, run  # noqa: E402


@pytest.mark.parametrize("name", FORMATS)
def test_what_is_whole_is_read(tmp_path, name):
    form = FORMATS[name]
    for path, data in form.files.items():
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_bytes(data)
    assert form.read(tmp_path / form.opened) in {"read", "read in part"}


def test_the_same_input_comes_again():
    assert [attempt("npy", 0, number) for number in range(20)] == [attempt("npy", 0, number) for number in range(20)]


def test_some_inputs_of_every_format():
    assert run(seed=0, count=12) == {}


@pytest.mark.longer
def test_many_inputs_of_every_format():
    """A minute of them; an hour is `python tests/fuzzing`."""
    assert run(seed=1, seconds=60, count=2000) == {}


def test_what_is_wrong_is_found(monkeypatch):
    """An exception, the end of the process, a message of two lines, a promise that is not kept."""
    from dataclasses import replace

    from lowrank_ldu.analysis.readers import CheckpointError

    def wrong(error):
        def read(_):
            raise error

        return read

    def ended(_):
        os.kill(os.getpid(), signal.SIGKILL)

    for read, found in (
        (wrong(KeyError("a")), "KeyError"),
        (wrong(MemoryError()), "MemoryError"),
        (ended, "ended with -9"),
    ):
        monkeypatch.setitem(FORMATS, "npy", replace(FORMATS["npy"], read=read))
        (what,) = run(["npy"], count=2)
        assert found in what
    monkeypatch.undo()
    monkeypatch.setattr("formats.open_weights", wrong(CheckpointError("two\nlines")))
    (what,) = run(["npy"], count=2)
    assert "message of several lines" in what
