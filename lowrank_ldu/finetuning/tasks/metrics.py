"""Compute the metrics of tasks from predictions."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from lowrank_ldu.errors import DivergenceError
from lowrank_ldu.finetuning.extra import require

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray

    Values = NDArray[Any]


def classification_metrics(names: Sequence[str]) -> Callable[[Any], dict[str, float]]:
    """Return a function from logits and labels to metrics.

    Parameters
    ----------
    names : sequence of str
        Of "accuracy", "f1" (of label 1) and "matthews_correlation".

    Examples
    --------
    >>> compute = classification_metrics(["accuracy", "f1"])
    >>> compute((np.array([[2.0, 1.0], [0.0, 1.0], [0.0, 3.0]]), np.array([0, 0, 1])))
    {'accuracy': 0.6666666666666666, 'f1': 0.6666666666666666}
    """

    def compute(evaluated: Any) -> dict[str, float]:
        logits, labels = evaluated
        predictions = _finite(logits).argmax(axis=-1)
        return {name: _OF_LABELS[name](labels, predictions) for name in names}

    return compute


def regression_metrics(names: Sequence[str]) -> Callable[[Any], dict[str, float]]:
    """Return a function from predicted and true numbers to metrics.

    Parameters
    ----------
    names : sequence of str
        Of "pearson" and "spearman". Both are 0 where all predictions, or all labels, are the same.

    Examples
    --------
    >>> compute = regression_metrics(["pearson", "spearman"])
    >>> found = compute((np.array([[1.0], [2.0], [3.0]]), np.array([0.0, 5.0, 10.0])))
    >>> {name: round(value, 6) for name, value in found.items()}
    {'pearson': 1.0, 'spearman': 1.0}
    """

    def compute(evaluated: Any) -> dict[str, float]:
        logits, labels = evaluated
        predictions = _finite(logits).reshape(len(labels)).astype(np.float64)
        return {name: _OF_NUMBERS[name](labels.astype(np.float64), predictions) for name in names}

    return compute


def _finite(logits: Any) -> Values:
    array = np.asarray(logits[0] if isinstance(logits, tuple) else logits)
    if not np.isfinite(array).all():
        raise DivergenceError("the model's predictions are not finite; accepted: a smaller learning_rate, or no fp16")
    return array


def metric_function(name: str) -> Callable[[Values, Values], float]:
    """Return the function from predictions and labels to one metric.

    Parameters
    ----------
    name : str
        As for `classification_metrics` or `regression_metrics`; or "loss", of predictions that are the sum of the
        losses in a row and their number.

    Examples
    --------
    >>> metric_function("accuracy")(np.array([[2.0, 1.0], [0.0, 1.0]]), np.array([0, 0]))
    0.5
    """
    if name == "loss":
        return lambda predictions, _: float(np.divide(*predictions.astype(np.float64).sum(axis=0)))
    metrics = classification_metrics if name in _OF_LABELS else regression_metrics
    compute = metrics([name])
    return lambda predictions, labels: compute((predictions, labels))[name]


def _accuracy(labels: Values, predictions: Values) -> float:
    # scikit-learn's checks take a hundred times as long, and comparisons resample the rows.
    return float((labels == predictions).mean())


def _f1(labels: Values, predictions: Values) -> float:
    return float(require("sklearn.metrics").f1_score(labels, predictions, zero_division=0.0))


def _matthews(labels: Values, predictions: Values) -> float:
    return float(require("sklearn.metrics").matthews_corrcoef(labels, predictions))


def _correlation(name: str) -> Callable[[Values, Values], float]:
    def compute(labels: Values, predictions: Values) -> float:
        # It is not defined there; the correlation of labels, Matthews', is 0 in that case.
        if np.ptp(labels) == 0 or np.ptp(predictions) == 0:
            return 0.0
        return float(getattr(require("scipy.stats"), name)(labels, predictions).statistic)

    return compute


_OF_LABELS = {"accuracy": _accuracy, "f1": _f1, "matthews_correlation": _matthews}
_OF_NUMBERS = {"pearson": _correlation("pearsonr"), "spearman": _correlation("spearmanr")}
