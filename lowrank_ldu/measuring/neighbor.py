"""Keep a core busy by another process, for measurements beside it."""

from __future__ import annotations

import os
import subprocess
import sys
from contextlib import contextmanager
from typing import TYPE_CHECKING

from lowrank_ldu.errors import UserError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

# A pipe from this process is its standard input: the system closes it when this process ends, however it ends. Ctrl-C
# reaches both, and is this process's to answer.
_PROGRAM = """
import os, signal, sys, threading
signal.signal(signal.SIGINT, signal.SIG_IGN)
threading.Thread(target=lambda: (sys.stdin.buffer.read(), os._exit(0)), daemon=True).start()
import numpy
matrix = numpy.full((512, 512), 0.5, numpy.float32)
product = matrix @ matrix
sys.stdout.write("busy")
sys.stdout.flush()
while True:
    numpy.matmul(matrix, matrix, out=product)
"""
_ONE_THREAD = dict.fromkeys(
    ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "VECLIB_MAXIMUM_THREADS", "BLIS_NUM_THREADS"), "1"
)


@contextmanager
def busy_neighbor() -> Iterator[Callable[[], None]]:
    """Run a process that keeps one core busy meanwhile.

    It multiplies matrices in one thread, bound to no core, and ends with the block; if this process is killed, too.

    Yields
    ------
    callable
        Raises UserError if the process is no longer there: what was measured then is not what it says.
    """
    process = subprocess.Popen(  # noqa: S603  # this interpreter
        [sys.executable, "-c", _PROGRAM],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env=os.environ | _ONE_THREAD,
    )

    def check() -> None:
        if process.poll() is not None:
            raise UserError("the busy neighbor process has ended; accepted: to leave it alone while it is measured")

    try:
        assert process.stdout is not None  # noqa: S101  # a pipe was asked for
        if process.stdout.read(4) != b"busy":
            raise UserError("the busy neighbor process did not start; accepted: an interpreter that imports numpy")
        yield check
    finally:
        process.kill()
        process.communicate()
