"""Time of the truncated LDU beside what it stands in for; each group is one comparison, its first row the shortest.

    pytest benchmarks --benchmark-only --benchmark-group-by=group --benchmark-columns=median,iqr,rounds

The figure in brackets behind a median is its ratio to the group's shortest.
"""

import pytest
import torch

from lowrank_ldu import ldu, pissa, svd

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
