"""Time of the truncated LDU beside what it stands in for; each group is one comparison, its first row the shortest.

    pytest benchmarks --benchmark-only --benchmark-group-by=group --benchmark-columns=median,iqr,rounds

The figure in brackets behind a median is its ratio to the group's shortest.
"""

import time
from functools import partial

import numpy as np
import pytest
import scipy.fft
import torch
from minilm import checkpoint
from threadpoolctl import threadpool_limits

from lowrank_ldu import SVD, ldu, ldu_lowrank, pissa, svd

RANK = 64
SHAPES = {"4096x4096": (4096, 4096), "768x768": (768, 768)}


@pytest.fixture(params=["4096x4096", "768x768"])
def W(request, benchmark, device):
    benchmark.group = f"{request.param} float32 torch {device}, r = {RANK}"
    return torch.randn(SHAPES[request.param], device=device)


def median_of(benchmark, function, rounds):
    def finished():
        function()
        if torch.cuda.is_initialized():
            torch.cuda.synchronize()

    benchmark.pedantic(finished, rounds=rounds, warmup_rounds=2)


def test_ldu_partial(benchmark, W):
    median_of(benchmark, lambda: ldu(W, RANK), rounds=21)


def test_ldu_randomized(benchmark, W):
    median_of(benchmark, lambda: ldu(W, RANK, pivoting="randomized"), rounds=11)


def test_ldu_rook(benchmark, W):
    median_of(benchmark, lambda: ldu(W, RANK, pivoting="rook"), rounds=7)


def test_ldu_complete(benchmark, W):
    median_of(benchmark, lambda: ldu(W, RANK, pivoting="complete"), rounds=3)


def test_torch_full_lu(benchmark, W):
    median_of(benchmark, lambda: torch.linalg.lu(W), rounds=7)


def test_torch_svd_lowrank_niter_4(benchmark, W):
    median_of(benchmark, lambda: torch.svd_lowrank(W, RANK, niter=4), rounds=7)


def test_pissa_niter_4(benchmark, W):
    median_of(benchmark, lambda: pissa(W, RANK, niter=4), rounds=7)


class TestNearBest:
    """The LDU of nearly the best approximation, beside the SVD of it: W has singular values i ** -0.5."""

    @pytest.fixture(params=[4096, 1024])
    def decaying(self, request, benchmark, device):
        benchmark.group = f"near-best {request.param}x{request.param} float32 torch {device}, r = {RANK}"
        W, values = with_decaying_values(request.param)
        return W.to(device), float((values[RANK:] ** 2).sum() ** 0.5)

    def timed(self, benchmark, decaying, approximation):
        W, least = decaying
        median_of(benchmark, lambda: approximation(W), rounds=9)
        left, right = approximation(W)
        error = float(torch.linalg.norm((W - left @ right).double())) / least
        benchmark.extra_info["error"] = error
        print(f"{benchmark.name}: error over the least one {error:.4f}")
        return error

    @pytest.mark.parametrize("niter", [0, 1, 2, 3])
    def test_ldu_lowrank(self, benchmark, decaying, niter):
        def approximation(W):
            factors = ldu_lowrank(W, RANK, niter=niter)
            return factors.left * factors.diagonal, factors.right

        assert self.timed(benchmark, decaying, approximation) <= {0: 1.5, 1: 1.1, 2: 1.02, 3: 1.01}[niter]

    @pytest.mark.parametrize("niter", [2, 4])
    def test_torch_svd_lowrank(self, benchmark, decaying, niter):
        def approximation(W):
            left, values, right = torch.svd_lowrank(W, RANK + 8, niter=niter)
            return left[:, :RANK] * values[:RANK], right[:, :RANK].mT

        self.timed(benchmark, decaying, approximation)


@pytest.mark.parametrize("size", [4096, 1024, 384])
def test_processor_time_of_near_best_beside_svd_lowrank(size):
    """In turn and on one thread, by the processor's time, which other processes disturb less."""
    torch.set_num_threads(1)
    W, values = with_decaying_values(size)
    least = float((values[RANK:] ** 2).sum() ** 0.5)

    def of_torch(niter):
        left, sizes, right = torch.svd_lowrank(W, RANK + 8, niter=niter)
        return SVD(left[:, :RANK], sizes[:RANK], right[:, :RANK].mT)

    methods = {f"ldu_lowrank niter={niter}": partial(ldu_lowrank, W, RANK, niter=niter) for niter in (1, 2, 3)}
    methods |= {f"svd_lowrank niter={niter}": partial(of_torch, niter) for niter in (2, 4)}
    errors, seconds = {}, {name: [] for name in methods}
    for name, method in 9 * [*methods.items()]:
        with threadpool_limits(1):
            start = time.process_time()
            factors = method()
            seconds[name].append(time.process_time() - start)
        if name not in errors:
            errors[name] = float(torch.linalg.norm((W - factors.reconstruct()).double())) / least
    longest = np.median(seconds["svd_lowrank niter=4"])
    for name, spent in seconds.items():
        typical = np.median(spent)
        print(f"{size} {name}: error {errors[name]:.4f}, {1e3 * typical:.1f} ms, ratio {typical / longest:.2f}")
    assert errors["ldu_lowrank niter=2"] <= 1.02


def with_decaying_values(size):
    """W with singular values i ** -0.5, and those: rotated by cosine transforms with random signs."""
    generator = np.random.default_rng(0)
    values = np.arange(1, size + 1) ** -0.5
    W = np.diag(values)
    for axis in (0, 1, 0, 1):
        W = scipy.fft.dct(W * np.expand_dims(generator.choice([-1.0, 1.0], size), 1 - axis), axis=axis, norm="ortho")
    return torch.from_numpy(W.astype(np.float32)), values


def test_near_best_error_on_real_weights():
    """Of every linear weight of all-MiniLM-L6-v2, over the least error of any matrix of that rank."""
    safetensors = pytest.importorskip("safetensors.torch")
    ratios = {name: [] for name in ("ldu_lowrank niter=1", "ldu_lowrank niter=2", "svd_lowrank niter=2")}
    for name, weight in safetensors.load_file(checkpoint()).items():
        if not name.startswith("encoder") or weight.ndim != 2:
            continue
        W = weight.float()
        least = float((torch.linalg.svdvals(W.double())[RANK:] ** 2).sum() ** 0.5)
        left, values, right = torch.svd_lowrank(W, RANK + 8, niter=2)
        for key, approximation in (
            ("ldu_lowrank niter=1", ldu_lowrank(W, RANK, niter=1).reconstruct()),
            ("ldu_lowrank niter=2", ldu_lowrank(W, RANK).reconstruct()),
            ("svd_lowrank niter=2", (left[:, :RANK] * values[:RANK]) @ right[:, :RANK].mT),
        ):
            ratios[key].append(float(torch.linalg.norm((W - approximation).double())) / least)
    for key, found in ratios.items():
        print(f"{key}: median {np.median(found):.4f}, largest {max(found):.4f} of {len(found)} weights")
    assert np.median(ratios["ldu_lowrank niter=2"]) <= 1.03


def test_near_best_rebuilt_from_a_rounded_copy():
    """How far an update of the diagonal is off in a weight rounded to bfloat16: with stored pivots, and anew."""
    safetensors = pytest.importorskip("safetensors.torch")
    torch.set_num_threads(1)
    change = torch.from_numpy(np.random.default_rng(1).standard_normal(RANK).astype(np.float32))

    def update(factors):
        return (factors.left * (factors.diagonal * change)) @ factors.right

    stored, anew = [], []
    for name, weight in safetensors.load_file(checkpoint()).items():
        if name.startswith(("encoder.layer.2", "encoder.layer.4")) and weight.ndim == 2:
            factors = ldu_lowrank(weight, RANK)
            pivots = tuple(order[:RANK].tolist() for order in (factors.permutation, factors.column_permutation))
            expected, rounded = update(factors), weight.bfloat16()
            for found, given in ((stored, pivots), (anew, None)):
                off = update(ldu_lowrank(rounded, RANK, pivots=given)) - expected
                found.append(float(torch.linalg.norm(off) / torch.linalg.norm(expected)))
    print(f"stored pivots: median {np.median(stored):.4f}; searched anew: {np.median(anew):.4f}; {len(stored)} weights")
    assert max(stored) <= 0.05


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
def test_speed_is_not_bought_with_accuracy(dtype, device):
    """No ratio counts unless the factors are the truncation of the full factorization."""
    W = torch.randn(4096, 4096, dtype=dtype, device=device)
    P, L, R = torch.linalg.lu(W)
    z = torch.diagonal(R)
    factors = ldu(W, RANK)
    tolerance = {torch.float32: 1e-5, torch.float64: 1e-12}[dtype]
    for ours, reference in [
        (factors.left, P @ L[:, :RANK]),
        (factors.diagonal, z[:RANK]),
        (factors.right, (R / z[:, None])[:RANK]),
        (factors.reconstruct(), P @ L[:, :RANK] @ R[:RANK]),
    ]:
        difference = float(torch.linalg.norm(ours - reference) / torch.linalg.norm(reference))
        print(f"{dtype}: relative difference from the truncated full factorization {difference:.1e}")
        assert difference <= tolerance


class TestFullRank:
    """At full rank, where nothing is truncated: 768 x 768."""

    @pytest.fixture
    def W(self, benchmark, device):
        benchmark.group = f"768x768 float32 torch {device}, full rank"
        return torch.randn(768, 768, device=device)

    def test_ldu_partial(self, benchmark, W):
        median_of(benchmark, lambda: ldu(W), rounds=11)

    def test_torch_full_lu(self, benchmark, W):
        median_of(benchmark, lambda: torch.linalg.lu(W), rounds=11)

    def test_svd(self, benchmark, W):
        median_of(benchmark, lambda: svd(W), rounds=3)
