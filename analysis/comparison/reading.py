"""Read a saved comparison back."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from lowrank_ldu.analysis.comparison.result import CheckpointComparison
from lowrank_ldu.analysis.comparison.run import COMPARISON_RESULTS
from lowrank_ldu.analysis.document import COMPARISON_FORMAT, tensors_as_results
from lowrank_ldu.analysis.reading import DocumentKind, load_document

if TYPE_CHECKING:
    import os


def load_comparison(path: str | os.PathLike[str]) -> CheckpointComparison:
    """Read the document of a comparison, as of `load_document`."""
    return load_document(_COMPARISONS, path)


def _comparison(content: dict[str, Any]) -> CheckpointComparison:
    kind = COMPARISON_RESULTS
    comparison = tensors_as_results(content, CheckpointComparison, kind.record, (kind.figures,))
    if not comparison.matrices:  # there is no report of such a one, and it has no headline rank
        raise ValueError("no matrix in it was compared")
    return comparison


_COMPARISONS = DocumentKind("a comparison", COMPARISON_FORMAT, "compare.json", "CheckpointComparison.save", _comparison)
