"""The busy neighbor ends with its measurement, whatever that ends by."""

import os
import signal
import subprocess
import sys

import pytest

from lowrank_ldu.errors import UserError
from lowrank_ldu.measuring import busy_neighbor, neighbor


@pytest.fixture
def started(monkeypatch):
    """The processes that were started."""
    found = []
    real = subprocess.Popen

    def popen(*arguments, **options):
        found.append(real(*arguments, **options))
        return found[-1]

    monkeypatch.setattr(neighbor.subprocess, "Popen", popen)
    return found


@pytest.mark.parametrize("error", [None, ZeroDivisionError, KeyboardInterrupt])
def test_it_ends_with_the_block(started, error):
    def use():
        with busy_neighbor() as check:
            check()
            assert started[0].poll() is None
            if error is not None:
                raise error

    if error is None:
        use()
    else:
        with pytest.raises(error):
            use()
    assert started[0].poll() is not None


def test_its_end_is_noticed(started):
    with busy_neighbor() as check:
        started[0].kill()
        started[0].wait()
        with pytest.raises(UserError, match="the busy neighbor process has ended"):
            check()


def test_one_that_does_not_start(monkeypatch):
    monkeypatch.setattr(neighbor, "_PROGRAM", "raise SystemExit")
    with pytest.raises(UserError, match="did not start"), busy_neighbor():
        pass


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="there is no such signal here")
def test_it_ends_with_a_process_that_is_killed():
    """Its output is closed when it ends: reading it to the end is waiting for that."""
    program = (
        "import os, signal, subprocess, sys\n"
        "from lowrank_ldu.measuring import neighbor\n"
        # The neighbor's errors go to this process's output, which it holds open as long as it lives.
        "neighbor.subprocess.DEVNULL = sys.stdout\n"
        "with neighbor.busy_neighbor():\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    command = [sys.executable, "-c", program]
    result = subprocess.run(command, check=False, stdout=subprocess.PIPE, env=os.environ, timeout=120)
    assert result.returncode == -signal.SIGKILL


def test_ctrl_c_is_the_parents():
    assert "signal.signal(signal.SIGINT, signal.SIG_IGN)" in neighbor._PROGRAM
