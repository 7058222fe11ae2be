"""Spread matrices over threads, as far as memory allows."""

from __future__ import annotations

import math
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from threading import Lock
from typing import TYPE_CHECKING

import torch
from threadpoolctl import threadpool_limits

from lowrank_ldu.analysis.selection import matrix_shape
from lowrank_ldu.environment import physical_memory

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from lowrank_ldu.analysis.options import SurveyOptions
    from lowrank_ldu.checkpoints import TensorInfo

# Peak bytes of an analysis per matrix entry: a dozen copies in float64, four where the matrix is taken in blocks, and
# six where factors a third as large as it are, too.
BYTES_PER_ENTRY = 12 * 8
_BYTES = {"exact": BYTES_PER_ENTRY, "cheap": 4 * 8, "fast": 6 * 8}
# What of that is in the host's memory where a GPU of its own memory computes: the matrix as it is read, its pinned copy
# and one between them, and in mode "exact" the Gram matrices whose Cholesky factors are the host's.
_BESIDE_GPU = {"exact": 8 * 8, "cheap": 3 * 8, "fast": 3 * 8}
_limiting = Lock()


@dataclass(frozen=True)
class Layout:
    """Hold numbers of parallel matrices and of threads inside each."""

    matrices: int
    threads_each: int


def bytes_per_entry(options: SurveyOptions) -> int:
    """Return the peak bytes of an analysis per matrix entry, of the host's memory.

    A GPU of Apple's has the same memory.
    """
    return (_BESIDE_GPU if options.device.startswith("cuda") else _BYTES)[options.mode]


def plan(
    tensors: Iterable[TensorInfo],
    threads: int,
    memory: int | None = None,
    each: int = BYTES_PER_ENTRY,
    *,
    alone: bool = False,
) -> Layout:
    """Spread threads over matrices, as far as memory allows.

    Half of `memory` bytes may be taken, of this machine's if not given.

    An analysis takes `each` bytes for an entry of its matrix.

    Whole matrices side by side scale better than threads inside one: the eigenvalue problems here are small, and
    threads that wait for each other at every step of them lose more than they win, by far on a shared machine.

    Where a matrix is `alone`, all threads are for it, while the next one is read.
    """
    memory = physical_memory() if memory is None else memory
    needs = [each * math.prod(matrix_shape(info.shape, info.order)) for info in tensors]
    at_once = max(1, min(2 if alone else threads, len(needs), memory // 2 // max(needs, default=1)))
    return Layout(at_once, threads if alone else max(1, threads // at_once))


@contextmanager
def pinned_threads(count: int) -> Iterator[None]:
    """Limit the threads of torch and BLAS for a while.

    Of torch, in every thread that is started inside the context.
    """
    before = torch.get_num_threads()
    with threadpool_limits(count):
        torch.set_num_threads(count)
        try:
            yield
        finally:
            torch.set_num_threads(before)


def limit_threads(count: int) -> None:
    """Limit the threads of torch and BLAS from now on.

    Of torch in this thread, of BLAS in this process.

    For a process that runs several analyses at once and does nothing else: there is no moment to undo it.
    """
    with _limiting:  # other threads wait until the limit is set
        _limit_blas(count)
    torch.set_num_threads(count)


@cache  # looking for the libraries takes longer than a small analysis
def _limit_blas(count: int) -> None:
    threadpool_limits(count)


_GIBIBYTE = 2**30


def size_reason(info: TensorInfo, bytes_per_entry: int, memory: int) -> str | None:
    """Return why a matrix is too large, None if it is not.

    The kernel would end the whole analysis.

    Parameters
    ----------
    info : TensorInfo
        Of a matrix.
    bytes_per_entry : int
        That the analysis needs at its peak.
    memory : int
        Bytes of the machine, half of which may be used.

    Examples
    --------
    >>> from lowrank_ldu.checkpoints import TensorInfo
    >>> print(size_reason(TensorInfo("w", (2**17, 2**13), "float32", "a.safetensors", 2**32), 96, 2**34))
    131072 x 8192: too large, since its analysis takes about 96.0 GiB; accepted: up to 8.0 GiB, half of the memory
    """
    m, n = matrix_shape(info.shape, info.order)
    need = math.prod((m, n, bytes_per_entry))
    if 2 * need <= memory:
        return None
    return (
        f"{m} x {n}: too large, since its analysis takes about {need / _GIBIBYTE:.1f} GiB; accepted: up to "
        f"{memory / 2 / _GIBIBYTE:.1f} GiB, half of the memory"
    )
