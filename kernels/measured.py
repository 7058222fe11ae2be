"""Measure the speed of this machine's processor, once.

One thread computes small products, and its own processor time counts: neither other processes nor torch's number of
threads change the figures much. They are kept in the process and in a file of the user's cache folder, which is written
whole or not at all; a file that is not as it was written is measured anew.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import platform
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch.nn.functional import linear

from lowrank_ldu.kernels.packed import multiply_adds, project
from lowrank_ldu.kernels.row_threads import run_alone
from lowrank_ldu.kernels.torch_modes import is_dispatched, transformed

if TYPE_CHECKING:
    from collections.abc import Callable

SWITCH = "LOWRANK_LDU_MEASURE"
_OFF = {"0", "false", "no", "off"}
# Of the file: figures that mean something else need another one.
_FORMAT = 1
DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
# A layer of medium size, and entries beyond the caches that belong to one core.
_ROWS, _SIZE, _ENTRIES = 512, 768, 2**22
# Processors without instructions for half precision compute ten times as long.
_HALF_ROWS = 128
# Of each figure: seconds at most, and calls at least.
_SECONDS, _LEAST = 0.05, 3


class Figures(NamedTuple):
    """Hold the speed of one thread.

    Attributes
    ----------
    rates : tuple of float
        Multiply-adds a second of dense products, in the order of `DTYPES`.
    narrow : float
        The same in float32 for triangular products by blocks.
    bandwidth : float
        Bytes a second, read and written.
    call : float
        Seconds of a product that has next to nothing to compute.
    """

    rates: tuple[float, ...]
    narrow: float
    bandwidth: float
    call: float


_lock = threading.Lock()
_known: Figures | None = None


def present_figures() -> Figures | None:
    """Return the figures, measured if need be.

    None where they are not to be measured: `LOWRANK_LDU_MEASURE=0` is set, or torch records a graph or transforms
    functions, so that no product would be computed.
    """
    global _known  # noqa: PLW0603  # one for the process
    if torch.compiler.is_compiling() or is_switched_off():
        return None
    if _known is not None:
        return _known
    if is_dispatched() or transformed() or torch.jit.is_tracing():  # type: ignore[no-untyped-call, attr-defined]
        return None
    with _lock:
        if _known is None:
            path, key = _place()
            _known = read_figures(path, key)
            if _known is None:
                _known = run_alone(measure)
                write_figures(_known, path, key)
        return _known


def is_switched_off() -> bool:
    """Return whether the environment asks for built-in figures."""
    return os.environ.get(SWITCH, "").strip().lower() in _OFF


def measure() -> Figures:
    """Measure the thread that calls; takes half a second."""
    with torch.no_grad():
        rates = tuple(_rate(dtype) for dtype in DTYPES)
        x, upper, out = _constant(_ROWS, _SIZE), _constant(_SIZE, _SIZE), _constant(_ROWS, _SIZE)
        narrow = _ROWS * multiply_adds(_SIZE, _SIZE) / _spent(lambda: project(x, upper, out))
        # Into memory that is there: where new memory comes from depends on what the process did before.
        entries, scaled = _constant(_ENTRIES), _constant(_ENTRIES)
        bandwidth = 2 * entries.nbytes / _spent(lambda: torch.mul(entries, 0.5, out=scaled))
        small = _constant(8, 8)
        call = _spent(lambda: [linear(small, small) for _ in range(100)]) / 100
    return Figures(rates, narrow, bandwidth, call)


def _constant(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    # Nothing is drawn from the user's random numbers, nor made on the user's default device.
    return torch.full(shape, 0.5, device="cpu", dtype=dtype)


def _rate(dtype: torch.dtype) -> float:
    rows = _HALF_ROWS if dtype.itemsize == 2 else _ROWS
    x, weight = _constant(rows, _SIZE, dtype=dtype), _constant(_SIZE, _SIZE, dtype=dtype)
    return rows * weight.numel() / _spent(lambda: torch.mm(x, weight.T))


def _spent(step: Callable[[], object]) -> float:
    """Return the processor time of the quickest call."""
    # Windows counts it in sixtieths of a second.
    fine = time.get_clock_info("thread_time").resolution < 1e-5
    clock = time.thread_time if fine else time.perf_counter
    step()
    taken: list[float] = []
    while len(taken) < _LEAST or sum(taken) < _SECONDS:
        start = clock()
        step()
        taken.append(max(clock() - start, 1e-9))
    return min(taken)


def cache_folder() -> Path:
    """Return the user's cache folder for this package."""
    home = Path(os.path.expanduser("~"))  # noqa: PTH111  # Path.home() raises where there is none
    if sys.platform == "win32":
        base = os.environ.get("LOCALAPPDATA") or str(home / "AppData" / "Local")
    elif sys.platform == "darwin":
        base = str(home / "Library" / "Caches")
    else:
        base = os.environ.get("XDG_CACHE_HOME") or str(home / ".cache")
    return Path(base) / "lowrank-ldu"


def _place() -> tuple[Path, dict[str, object]]:
    """Return the file of this machine and what it is of."""
    key: dict[str, object] = {
        "format": _FORMAT,
        "processor": _processor(),
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "torch": torch.__version__,
    }
    text = "-".join(str(value) for value in key.values())
    name = "".join(char if char.isalnum() or char == "." else "-" for char in text)
    return cache_folder() / f"speed-{name}.json", key


def _processor() -> str:
    """Return the processor's vendor, family, model and name."""
    try:
        first = Path("/proc/cpuinfo").read_text(encoding="utf-8").split("\n\n", 1)[0]
    except (OSError, UnicodeDecodeError):
        return platform.processor() or platform.machine()
    told = {"vendor_id", "cpu family", "model", "model name", "CPU implementer", "CPU part"}
    values = (line.partition(":") for line in first.splitlines())
    return " ".join(value.strip() for name, _, value in values if name.strip() in told) or platform.machine()


def read_figures(path: Path, key: dict[str, object]) -> Figures | None:
    """Return the figures of a file.

    None if there are none for this key, or if the file is damaged.
    """
    try:
        stored = json.loads(path.read_text(encoding="utf-8"))
        rates = tuple(stored["rates"])
        found = Figures(rates, stored["narrow"], stored["bandwidth"], stored["call"])
        same = stored["key"] == key and len(rates) == len(DTYPES)
        positive = all(type(each) is float and 0 < each < math.inf for each in (*rates, *found[1:]))
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None
    return found if same and positive else None


def write_figures(figures: Figures, path: Path, key: dict[str, object]) -> None:
    """Write figures, whole or not at all.

    Where the folder cannot be written to, the process alone keeps them.
    """
    with contextlib.suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=".speed-")
        try:
            with os.fdopen(descriptor, "w", encoding="utf-8") as file:
                json.dump({"key": key, **figures._asdict()}, file)
            Path(name).replace(path)
        except BaseException:
            Path(name).unlink(missing_ok=True)
            raise


def _after_fork() -> None:
    global _lock  # noqa: PLW0603
    _lock = threading.Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
