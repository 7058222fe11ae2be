"""Intervals of scores, against textbooks."""

import math

import numpy as np
import pytest
import scipy.stats

from lowrank_ldu.finetuning.comparison import interval, resampled_scores
from lowrank_ldu.finetuning.tasks.metrics import metric_function


def test_an_interval_of_seeds_alone_is_students():
    scores = [0.81, 0.79, 0.84, 0.80, 0.82]
    found = interval(scores)
    low, high = scipy.stats.t.interval(0.95, 4, loc=np.mean(scores), scale=scipy.stats.sem(scores))
    assert (found.mean, found.low, found.high) == pytest.approx((np.mean(scores), low, high))


def test_the_error_of_an_accuracy_is_the_binomials():
    generator = np.random.default_rng(1)
    labels = generator.integers(2, size=2000)
    right = generator.random(2000) < 0.8
    logits = np.eye(2)[np.where(right, labels, 1 - labels)]
    drawn = resampled_scores(metric_function("accuracy"), [logits], labels, draws=1000)
    share = right.mean()
    # Of 1,000 draws the standard deviation is known to 2.2 %.
    assert drawn.std() == pytest.approx(math.sqrt(share * (1 - share) / 2000), rel=0.08)
    # Seeds that agree leave the normal distribution of the rows.
    found = interval([share, share], drawn)
    assert found.high - found.low == pytest.approx(2 * 1.959964 * drawn.std(ddof=1))


def test_a_loss_is_resampled_by_rows_of_unequal_length():
    generator = np.random.default_rng(4)
    tokens = generator.integers(1, 20, size=400).astype(float)
    losses = np.stack([generator.gamma(2, size=400) * tokens, tokens], axis=1)
    drawn = resampled_scores(metric_function("loss"), [losses], np.zeros(400), draws=1000)
    mean = losses[:, 0].sum() / tokens.sum()
    # The ratio estimator's error (Cochran, Sampling Techniques, 6.4).
    error = math.sqrt(((losses[:, 0] - mean * tokens) ** 2).sum() / 399 * 400) / tokens.sum()
    assert drawn.std() == pytest.approx(error, rel=0.08)
    assert drawn.mean() == pytest.approx(mean, abs=0.2 * error)


def test_rows_are_the_same_for_all_methods():
    generator = np.random.default_rng(2)
    labels = generator.integers(2, size=300)
    logits = generator.normal(size=(300, 2))
    first, second = (resampled_scores(metric_function("accuracy"), [logits], labels, draws=50) for _ in range(2))
    assert (first == second).all()
    worse = logits.copy()
    worse[:3] = np.eye(2)[1 - labels[:3]]
    apart = first - resampled_scores(metric_function("accuracy"), [worse], labels, draws=50)
    # Three rows of 300 differ; without pairing the differences would scatter by 0.04.
    assert apart.std() < 0.012


def test_an_interval_covers_seeds_and_rows():
    """Of 400 experiments of five seeds and 200 rows, about 95 % of the intervals hold the true share."""
    generator = np.random.default_rng(3)
    held = 0
    for _ in range(400):
        hard = generator.normal(0, 1, size=200)
        seeds = generator.normal(0, 0.15, size=(5, 1))
        # A row is right where its ease is above the seed's threshold; the mean over both is one half.
        right = (hard + seeds > 0).astype(float)
        rows = generator.integers(200, size=(200, 200))
        found = interval(right.mean(axis=1), right.mean(axis=0)[rows].mean(axis=1))
        held += found.low <= 0.5 <= found.high
    # The binomial's three standard deviations are 3.3 %.
    assert 0.915 < held / 400 <= 0.99


def test_one_seed_has_no_interval():
    assert math.isnan(interval([0.5]).low)
    assert math.isnan(interval([]).mean)
