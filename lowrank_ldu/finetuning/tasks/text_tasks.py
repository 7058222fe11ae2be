"""List the tasks of text classification: columns, labels, metrics."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class TextTask:
    """Hold what a task of texts and labels consists of.

    Attributes
    ----------
    columns : tuple of str
        Of the one or two texts; the label is in column "label".
    labels : tuple of str, optional
        Names of the labels in the order of their numbers; None where the label is a number to be predicted.
    metrics : tuple of str
        Names in `lowrank_ldu.finetuning.tasks.metrics`. The best state is chosen by the first.
    validation : str
        Name of the split that it is chosen on.
    others : tuple of str
        Splits that are evaluated once, when training is over.
    snippets : str, optional
        Set of the sentiment archive, where the data are in that.
    """

    columns: tuple[str, ...]
    labels: tuple[str, ...] | None
    metrics: tuple[str, ...]
    validation: str = "validation"
    others: tuple[str, ...] = ()
    snippets: str | None = None


_ENTAILMENT = ("entailment", "not_entailment")
_CORRELATIONS = ("pearson", "spearman")

GLUE = {
    "mnli": TextTask(
        ("premise", "hypothesis"),
        ("entailment", "neutral", "contradiction"),
        ("accuracy",),
        validation="validation_matched",
        others=("validation_mismatched",),
    ),
    "sst2": TextTask(("sentence",), ("negative", "positive"), ("accuracy",)),
    "mrpc": TextTask(("sentence1", "sentence2"), ("not_equivalent", "equivalent"), ("accuracy", "f1")),
    "cola": TextTask(("sentence",), ("unacceptable", "acceptable"), ("matthews_correlation", "accuracy")),
    "qnli": TextTask(("question", "sentence"), _ENTAILMENT, ("accuracy",)),
    "qqp": TextTask(("question1", "question2"), ("not_duplicate", "duplicate"), ("accuracy", "f1")),
    "rte": TextTask(("sentence1", "sentence2"), _ENTAILMENT, ("accuracy",)),
    "stsb": TextTask(("sentence1", "sentence2"), None, _CORRELATIONS),
}

SENTIMENT = {
    f"{name}-{question}": TextTask(("text",), labels, metrics, others=("test",), snippets=name)
    for question, labels, metrics in (
        ("polarity", ("negative", "positive"), ("accuracy",)),
        ("rating", None, _CORRELATIONS),
    )
    for name in ("movies", "amazon", "news")
}

TEXT_TASKS = {**GLUE, **SENTIMENT}
