"""Damaged inputs of every format are read, in part or whole, or refused in one line: never anything else."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="needs /proc")
for package in ("gguf", "h5py", "onnx", "peft"):
    pytest.importorskip(package)
sys.path.insert(0, str(Path(__file__).parent))

from formats import FORMATS  # noqa: E402
from harness import attempt  # noqa: E402


@pytest.mark.parametrize("name", FORMATS)
def test_what_is_whole_is_read(tmp_path, name):
    form = FORMATS[name]
    for path, data in form.files.items():
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_bytes(data)
    assert form.read(tmp_path / form.opened) in {"read", "read in part"}


def test_the_same_input_comes_again():
    assert [attempt("npy", 0, number) for number in range(20)] == [attempt("npy", 0, number) for number in range(20)]


DIGESTS = """
import hashlib, sys

sys.path.insert(0, sys.argv[1])
from formats import FORMATS
from harness import _files

for name in FORMATS:
    digest = hashlib.sha256()
    for number in range(30):
        for path, data in sorted(_files(name, 0, number).items()):
            digest.update(path.encode() + data)
    print(name, digest.hexdigest())
"""


def test_inputs_are_the_same_in_every_process():
    """Also when the clock has gone on, and other addresses are given out."""
    command = [sys.executable, "-P", "-c", DIGESTS, str(Path(__file__).parent)]
    said = [
        subprocess.run(
            command,
            capture_output=True,
            text=True,
            check=True,
            env={**os.environ, "TZ": zone},
        ).stdout
        for zone in ("UTC", "Asia/Tokyo")
    ]
    assert len(said[0].splitlines()) == len(FORMATS)
    assert said[0] == said[1]


def fuzz(*options):
    """What the command says, which forks: in a process in which nothing has begun threads."""
    command = [sys.executable, str(Path(__file__).parent), *map(str, options)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_some_inputs_of_every_format():
    done = fuzz("--seed", 0, "--count", 12)
    assert done.returncode == 0, done.stdout
    assert done.stdout.splitlines()[-1] == f"{12 * len(FORMATS)} inputs, 0 findings"


@pytest.mark.longer
def test_many_inputs_of_every_format():
    """A minute of them; an hour is `python tests/fuzzing`."""
    done = fuzz("--seed", 1, "--minutes", 1)
    assert done.returncode == 0, done.stdout


WRONG = """
import os, signal, sys, time
import formats, harness
from dataclasses import replace
from lowrank_ldu.checkpoints import CheckpointError

def wrong(error):
    def read(_):
        raise error
    return read

def found(read):
    formats.FORMATS["npy"] = replace(formats.FORMATS["npy"], read=read)
    (what,) = harness.run(["npy"], count=2)
    return what

assert "KeyError" in found(wrong(KeyError("a")))
assert "MemoryError" in found(wrong(MemoryError()))
assert "ended with -9" in found(lambda _: os.kill(os.getpid(), signal.SIGKILL))
harness.SECONDS = 0.2
assert "still reading" in found(lambda _: time.sleep(60))
formats.open_weights = wrong(CheckpointError("two\\nlines"))
assert "message of several lines" in found(formats.read_checkpoint)
"""


def test_what_is_wrong_is_found():
    """An exception, the end of the process, one that never ends, a message of two lines."""
    done = subprocess.run(
        [sys.executable, "-c", WRONG], cwd=Path(__file__).parent, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
