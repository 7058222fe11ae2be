"""Estimate how far a score may be from what other seeds and rows would give."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from lowrank_ldu.finetuning.extra import require

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray

    Values = NDArray[np.float64]
    Array = NDArray[Any]

DRAWS = 400
CONFIDENCE = 0.95


@dataclass(frozen=True)
class Interval:
    """Hold a mean over seeds, and its interval.

    Attributes
    ----------
    mean : float
    low, high : float
        95 %; nan where there is one seed.
    standard_error : float
        Of the mean, from seeds and rows together.
    """

    mean: float
    low: float
    high: float
    standard_error: float


def resampled_scores(
    metric: Callable[[Array, Array], float],
    predictions: Sequence[Array],
    labels: Array,
    *,
    draws: int = DRAWS,
) -> Values:
    """Compute the mean score over seeds on rows drawn with replacement.

    The draws depend on the number of rows alone, so that those of two methods are of the same rows.

    Parameters
    ----------
    metric : callable
        metric(predictions, labels), a number.
    predictions : sequence of numpy.ndarray, (rows, ...)
        Of each seed.
    labels : numpy.ndarray, (rows,)
    draws : int

    Returns
    -------
    numpy.ndarray, (draws,)
    """
    generator = np.random.default_rng(0)
    drawn = generator.integers(len(labels), size=(draws, len(labels)))
    return np.array([np.mean([metric(each[rows], labels[rows]) for each in predictions]) for rows in drawn])


def interval(scores: Sequence[float], resampled: Values | None = None) -> Interval:
    """Return the mean over seeds with a 95 % interval.

    The variance of the mean is the sum of two: that of the seeds, s^2 / n, and that of the rows, which resampling
    tells. The quantile is Student's, with Welch and Satterthwaite's degrees of freedom.

    Parameters
    ----------
    scores : sequence of float
        Of each seed: of a method, or differences of two methods with the same seeds.
    resampled : numpy.ndarray, optional
        Of `resampled_scores`, or differences of two. Without it the interval is of the seeds alone.

    Returns
    -------
    Interval

    Examples
    --------
    >>> found = interval([0.80, 0.82, 0.81])
    >>> round(found.mean, 3), round(found.low, 3), round(found.high, 3)
    (0.81, 0.785, 0.835)
    """
    values = np.asarray(scores, dtype=np.float64)
    count = len(values)
    if count == 0:
        return Interval(math.nan, math.nan, math.nan, math.nan)
    mean = float(values.mean())
    if count == 1:
        return Interval(mean, math.nan, math.nan, math.nan)
    of_seeds = float(values.var(ddof=1)) / count
    of_rows = 0.0 if resampled is None else float(resampled.var(ddof=1))
    variance = of_seeds + of_rows
    if variance == 0:
        return Interval(mean, mean, mean, 0.0)
    # That of the rows is known from many draws, and has no share in the uncertainty of the variance.
    freedom = math.inf if of_seeds == 0 else (count - 1) * (variance / of_seeds) ** 2
    distribution = require("scipy.stats").norm if math.isinf(freedom) else require("scipy.stats").t(freedom)
    error = math.sqrt(variance)
    half = float(distribution.ppf((1 + CONFIDENCE) / 2)) * error
    return Interval(mean, mean - half, mean + half, error)
