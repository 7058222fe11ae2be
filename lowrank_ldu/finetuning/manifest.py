"""Tell where numbers come from: versions, revision, digests."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import hashlib
import importlib
import shlex
import shutil
import subprocess
import sys
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from lowrank_ldu.environment import describe_environment

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import nn

# Of Linux: what is written to the first one sets back the figure VmHWM of the second one.
_CLEAR, _STATUS = Path("/proc/self/clear_refs"), Path("/proc/self/status")
_PACKAGES = (
    "transformers",
    "peft",
    "accelerate",
    "datasets",
    "tokenizers",
    "safetensors",
    "scikit-learn",
    "diffusers",
    "pillow",
)


def describe_start() -> dict[str, Any]:
    """Describe the process that trains, when it starts.

    Returns
    -------
    dict
        With "time", "command", "machine", "versions" and "git"; values for JSON.
    """
    environment = describe_environment()
    machine: dict[str, Any] = {
        "cpu": environment.cpu,
        "cores": environment.cores,
        "system": environment.system,
        "threads": torch.get_num_threads(),
    }
    if torch.cuda.is_available():
        machine["gpus"] = [torch.cuda.get_device_name(place) for place in range(torch.cuda.device_count())]
    return {
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": shlex.join(sys.argv),
        "machine": machine,
        "versions": environment.versions | {name: found for name in _PACKAGES if (found := _version(name))},
        "git": git_state(Path(__file__).parent),
    }


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def git_state(folder: Path) -> dict[str, Any] | None:
    """Return the revision of the checkout that a folder is in.

    Parameters
    ----------
    folder : pathlib.Path

    Returns
    -------
    dict or None
        "revision", and "dirty": whether files differ from it. None where the folder's files are under no revision, as
        those of an installed package.
    """
    git = shutil.which("git")

    def output(*words: str) -> str | None:
        if git is None:
            return None
        done = subprocess.run([git, "-C", str(folder), *words], capture_output=True, text=True, check=False)  # noqa: S603
        return done.stdout if done.returncode == 0 else None

    # An environment may lie within another project's checkout.
    if not output("ls-files", "."):
        return None
    revision, changes = output("rev-parse", "HEAD"), output("status", "--porcelain", "--untracked-files=no")
    return None if revision is None else {"revision": revision.strip(), "dirty": bool(changes)}


def weights_digest(model: nn.Module, without: Sequence[str] = ()) -> str:
    """Return the sha256 of a model's weights.

    Parameters
    ----------
    model : nn.Module
    without : sequence of str
        Modules that are left out, such as a head that a seed determines.

    Returns
    -------
    str

    Examples
    --------
    >>> layer = torch.nn.Linear(2, 2, bias=False)
    >>> _ = torch.nn.init.ones_(layer.weight)
    >>> weights_digest(layer)[:8]
    '055fa7b3'
    """
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        if any(name == each or name.startswith(f"{each}.") for each in without):
            continue
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        # 0-d tensors cannot be viewed as bytes, and bfloat16 has no array of numpy's.
        values = tensor.detach().cpu().contiguous().reshape(-1)
        digest.update(values.view(torch.uint8).numpy().data)
    return digest.hexdigest()


def reset_peak_memory() -> None:
    """Count the most bytes of memory from now on, where the system allows that.

    Linux does, for this process. What earlier runs have freed is given back to the system first, where its allocator
    can do that.
    """
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    with contextlib.suppress(OSError, AttributeError, TypeError):
        ctypes.CDLL(None).malloc_trim(0)
    with contextlib.suppress(OSError):
        _CLEAR.write_text("5")


def peak_memory() -> int:
    """Return the most bytes of memory that this process has held since `reset_peak_memory`.

    They are the GPU's where there is one, and the process's elsewhere; 0 where the system does not tell.
    """
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    with contextlib.suppress(OSError, StopIteration):
        lines = _STATUS.read_text().splitlines()
        return int(next(line.split()[1] for line in lines if line.startswith("VmHWM:"))) * 1024
    try:
        resource = importlib.import_module("resource")
    except ImportError:  # not on Windows
        return 0
    # In bytes on macOS, in kilobytes elsewhere.
    return int(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss) * (1 if sys.platform == "darwin" else 1024)
