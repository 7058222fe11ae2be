"""Time the methods of an analysis once for each shape."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any, cast

import torch

from lowrank_ldu.analysis.device import CPU, brought, has_dtype, synchronize, whole_products
from lowrank_ldu.analysis.measures.estimate import NITER, sketch_width
from lowrank_ldu.analysis.measures.matrix import PISSA_ITERATIONS
from lowrank_ldu.analysis.measures.placed import Placed
from lowrank_ldu.decomposition import ldu, ldu_lowrank, pissa, svd
from lowrank_ldu.decomposition.pissa import split_evenly

if TYPE_CHECKING:
    from collections.abc import Callable

    from lowrank_ldu.analysis.measures.matrix import MatrixAnalysis, MethodAtRank
    from lowrank_ldu.decomposition import SVD, Pivoting

# Seconds below which a run is repeated, for the best of three: short runs scatter.
_SHORT = 0.05


@dataclass(frozen=True)
class Problem:
    """Identify matrices whose factorizations take the same time.

    Attributes
    ----------
    m, n : int
    dtype : str
        That they are factored in.
    svd_niter : int or None
        Power iterations of the SVD; None for the whole one.
    """

    m: int
    n: int
    dtype: str
    svd_niter: int | None

    @classmethod
    def of(cls, matrix: MatrixAnalysis) -> Problem:
        """Return the problem that a matrix was."""
        return cls(matrix.m, matrix.n, matrix.measurements[0].diagnostics.dtype, matrix.svd_niter)


@dataclass(frozen=True)
class Times:
    """Hold the seconds of the SVD and of each method."""

    svd: float
    methods: dict[MethodAtRank, float]

    def put_into(self, matrix: MatrixAnalysis) -> MatrixAnalysis:
        """Return the analysis of a matrix with these times."""
        timed = [replace(item, seconds=self.methods[item.of]) for item in matrix.measurements]
        return replace(matrix, svd_seconds=self.svd, measurements=timed)


def time_methods(
    problem: Problem, methods: set[MethodAtRank], ranks: tuple[int, ...], seed: int, device: torch.device = CPU
) -> Times:
    """Time each method on a random matrix of a shape.

    Its entries are standard normal: of a matrix of full rank no method can stop early. Runs of less than 50 ms are
    made three times, and the best counts. On a device a run before them, which is not timed, loads its libraries, and
    a run ends when the device has done its work.

    Parameters
    ----------
    problem : Problem
    methods : set of MethodAtRank
    ranks : tuple of int
        Those that were asked for: the randomized SVD serves the largest.
    seed : int
        Of the matrix, and of sketches.
    device : torch.device
        Where matrices were analyzed. What it has no dtype or no method for is timed on the CPU, which computed it.
    """
    size, dtype = (problem.m, problem.n), getattr(torch, problem.dtype)
    on_host = torch.randn(size, generator=torch.Generator().manual_seed(seed), dtype=dtype)
    placed = Placed.of(brought(on_host, device) if has_dtype(device, dtype) else on_host)
    W, measured = placed.factored, placed.measured
    options: dict[str, Any] = {}
    if problem.svd_niter is not None:
        width = sketch_width([min(rank, *size) for rank in ranks])
        options = {"rank": width, "niter": NITER, "oversampling": 0, "seed": seed}
    with whole_products(device):
        factors, svd_seconds = _timed(lambda: svd(measured, **options), measured.device)

        def seconds_of(timed: MethodAtRank) -> float:
            if timed.method == "ldu":
                pivoting = cast("Pivoting", timed.pivoting)
                return _timed(lambda: ldu(W, timed.rank, pivoting=pivoting, seed=seed), W.device)[1]
            if timed.method == "ldu_lowrank":
                return _timed(lambda: ldu_lowrank(W, timed.rank, seed=seed), W.device)[1]
            if timed.exact:
                return svd_seconds + _split_seconds(factors, timed.rank, measured.device)
            quick = partial(pissa, measured, timed.rank, niter=PISSA_ITERATIONS, seed=seed)
            return _timed(quick, measured.device)[1]

        return Times(svd_seconds, {method: seconds_of(method) for method in methods})


def _split_seconds(factors: SVD, rank: int, device: torch.device) -> float:
    return _timed(lambda: split_evenly(factors.truncate(rank)), device)[1]


def _timed(compute: Callable[[], Any], device: torch.device) -> tuple[Any, float]:
    """Return a result and its seconds."""

    def once() -> tuple[Any, float]:
        synchronize(device)
        start = time.perf_counter()
        result = compute()
        synchronize(device)
        return result, time.perf_counter() - start

    if device.type != "cpu":
        once()
    result, seconds = once()
    if seconds < _SHORT:
        seconds = min(seconds, *(once()[1] for _ in range(2)))
    return result, seconds
