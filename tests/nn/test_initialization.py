"""The eight starts of the diagonal."""

import math

import pytest
import torch

from lowrank_ldu.nn import INITIALIZATIONS, initial_diagonal

z = torch.linspace(-1.0, 4.0, 20_000, dtype=torch.float64)


def test_there_are_eight():
    assert len(INITIALIZATIONS) == 8


@pytest.mark.parametrize(
    ("init", "low", "high", "mean", "std"),
    [
        ("regular_ldu", -1.0, 4.0, 1.5, 5 / math.sqrt(12)),
        ("constant_zmean", 1.5, 1.5, 1.5, 0.0),
        ("uniform_minus1_1", -1.0, 1.0, 0.0, 1 / math.sqrt(3)),
        ("uniform_zmean_half", -0.75, 0.75, 0.0, 0.75 / math.sqrt(3)),
        ("normal_0_1", -6.0, 6.0, 0.0, 1.0),
        ("normal_zmean_zstd", -9.0, 12.0, 1.5, 5 / math.sqrt(12)),
        ("zeros", 0.0, 0.0, 0.0, 0.0),
        ("ones", 1.0, 1.0, 1.0, 0.0),
    ],
)
def test_range_mean_and_spread(init, low, high, mean, std):
    start = initial_diagonal(init, z)
    assert start.shape == z.shape
    assert start.dtype == z.dtype
    assert low - 1e-9 <= start.min() <= start.max() <= high + 1e-9
    # Five standard errors of 20,000 draws.
    assert start.mean().item() == pytest.approx(mean, abs=5 * std / math.sqrt(20_000) + 1e-9)
    assert start.std().item() == pytest.approx(std, rel=0.05, abs=1e-9)


@pytest.mark.parametrize("init", INITIALIZATIONS)
def test_seeded_and_the_same_in_every_dtype(init):
    first, again = initial_diagonal(init, z[:9], 3), initial_diagonal(init, z[:9], 3)
    assert torch.equal(first, again)
    torch.testing.assert_close(initial_diagonal(init, z[:9].float(), 3).double(), first, atol=1e-6, rtol=1e-6)
    if init.startswith(("uniform", "normal")):
        assert not torch.equal(initial_diagonal(init, z[:9], 4), first)


@pytest.mark.parametrize("init", INITIALIZATIONS)
def test_a_single_entry_gives_no_nan(init):
    assert initial_diagonal(init, torch.tensor([2.0])).isfinite().all()


def test_the_start_is_a_copy():
    start = initial_diagonal("regular_ldu", z)
    start.zero_()
    assert z.abs().max() > 0
