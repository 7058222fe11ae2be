"""Describe the machine: its processor, memory and versions."""

from __future__ import annotations

import os
import platform
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import numpy as np
import scipy
import torch

_UNKNOWN_MEMORY = 8 * 2**30
# Of control groups of version 2 and 1; without a limit the latter says an enormous number.
_LIMITS = (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"))


@dataclass(frozen=True)
class Environment:
    """Hold where a survey ran.

    Attributes
    ----------
    cpu : str
        Model of the processor, or its architecture where the system does not tell.
    cores : int
        Logical cores of the machine.
    system : str
        Operating system and its version.
    engine : str
        What did the work, and how many at once. The rest is about the machine that wrote the report: the workers of
        a cluster may be others.
    versions : dict of str to str
        Of Python and the libraries that compute.
    device : str
        What the matrices were computed on: "cpu", or the device with its model.
    """

    cpu: str
    cores: int
    system: str
    engine: str
    versions: dict[str, str]
    device: str = "cpu"


def describe_environment(engine: str = "local", device: str = "cpu") -> Environment:
    """Look up the machine and the versions.

    Parameters
    ----------
    engine : str
        What did the work.
    device : str
        What it was done on.

    Returns
    -------
    Environment
    """
    return Environment(
        cpu=_cpu_model(),
        cores=os.cpu_count() or 1,
        system=f"{platform.system()} {platform.release()}",
        engine=engine,
        versions={
            # Of what is installed: the package itself stands on floors above this one.
            "lowrank_ldu": version("lowrank-ldu"),
            "torch": torch.__version__,
            "numpy": np.__version__,
            "scipy": scipy.__version__,
            "python": platform.python_version(),
        },
        device=device,
    )


def _cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    models = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(models, platform.processor() or platform.machine())


def physical_memory() -> int:
    """Return the bytes of memory for this process.

    They are the machine's, or what its container is limited to.
    """
    try:
        machine = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, OSError, ValueError):  # Windows has no sysconf, other systems other names
        machine = _UNKNOWN_MEMORY
    return min(machine, _container_limit() or machine)


def _container_limit() -> int:
    """Return the memory limit of the container's control group.

    A container sees that group as its own. 0 if there is no limit.
    """
    for file in _LIMITS:
        try:
            return int(file.read_text(encoding="ascii"))
        except (OSError, ValueError):  # another version, or "max"
            continue
    return 0
