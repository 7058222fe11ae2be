"""Analyze checkpoints, compare two of them, and test the paper's claims.

`analyze` takes a checkpoint, a module or a state dict, and returns an `Analysis`: pandas frames, plots, files.
`compare` and `examine_claims` do likewise for two of them, and for the paper's claims. The other names are options,
results, what these consist of, and errors.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from lowrank_ldu.errors import (
    CheckpointError,
    ClusterError,
    DocumentError,
    JournalError,
    NothingToAnalyzeError,
    NothingToCompareError,
    OptionError,
)

if TYPE_CHECKING:
    from lowrank_ldu.analysis.checkpoint import analyze, analyze_checkpoint
    from lowrank_ldu.analysis.claims import examine_claims
    from lowrank_ldu.analysis.claims.examined import Claims
    from lowrank_ldu.analysis.claims.report import write_claims
    from lowrank_ldu.analysis.claims.verdict import Claim, Finding, MatrixCase, verdict
    from lowrank_ldu.analysis.comparison.matrix import MatrixComparison
    from lowrank_ldu.analysis.comparison.pairs import PairResult
    from lowrank_ldu.analysis.comparison.report import write_comparison
    from lowrank_ldu.analysis.comparison.result import CheckpointComparison
    from lowrank_ldu.analysis.comparison.run import compare, compare_checkpoints
    from lowrank_ldu.analysis.comparison.summary import SummaryRow, comparison_headlines, summary_rows
    from lowrank_ldu.analysis.engine.cluster import connect
    from lowrank_ldu.analysis.engine.executor import Engine, Progress
    from lowrank_ldu.analysis.engine.journal import lock_journal
    from lowrank_ldu.analysis.engine.survey import TensorResult
    from lowrank_ldu.analysis.measures.curves import Curve
    from lowrank_ldu.analysis.measures.initialization_change import InitializationChange
    from lowrank_ldu.analysis.measures.matrix import MatrixAnalysis, Measurement
    from lowrank_ldu.analysis.measures.needed import NeededRank
    from lowrank_ldu.analysis.measures.recommendation import Recommendation
    from lowrank_ldu.analysis.measures.spectrum import Spectrum
    from lowrank_ldu.analysis.options import CompareOptions, ComputeDtype, Mode, SurveyOptions
    from lowrank_ldu.analysis.report.frame_columns import FrameColumn, frame_columns
    from lowrank_ldu.analysis.report.headlines import headlines
    from lowrank_ldu.analysis.report.page import write_report
    from lowrank_ldu.analysis.report.panel import Panel
    from lowrank_ldu.analysis.report.scope import Scope, headline_scope
    from lowrank_ldu.analysis.result import Analysis

__all__ = [
    "Analysis",
    "CheckpointComparison",
    "CheckpointError",
    "Claim",
    "Claims",
    "ClusterError",
    "CompareOptions",
    "ComputeDtype",
    "Curve",
    "DocumentError",
    "Engine",
    "Finding",
    "FrameColumn",
    "InitializationChange",
    "JournalError",
    "MatrixAnalysis",
    "MatrixCase",
    "MatrixComparison",
    "Measurement",
    "Mode",
    "NeededRank",
    "NothingToAnalyzeError",
    "NothingToCompareError",
    "OptionError",
    "PairResult",
    "Panel",
    "Progress",
    "Recommendation",
    "Scope",
    "Spectrum",
    "SummaryRow",
    "SurveyOptions",
    "TensorResult",
    "analyze",
    "analyze_checkpoint",
    "compare",
    "compare_checkpoints",
    "comparison_headlines",
    "connect",
    "examine_claims",
    "frame_columns",
    "headline_scope",
    "headlines",
    "lock_journal",
    "summary_rows",
    "verdict",
    "write_claims",
    "write_comparison",
    "write_report",
]

# The module of each name, imported at its first use: torch, matplotlib and pyarrow take seconds.
_HOMES = {
    "analyze": "checkpoint",
    "analyze_checkpoint": "checkpoint",
    "examine_claims": "claims",
    "write_claims": "claims.report",
    "Claims": "claims.examined",
    "Claim": "claims.verdict",
    "Finding": "claims.verdict",
    "MatrixCase": "claims.verdict",
    "verdict": "claims.verdict",
    "MatrixComparison": "comparison.matrix",
    "PairResult": "comparison.pairs",
    "write_comparison": "comparison.report",
    "CheckpointComparison": "comparison.result",
    "compare": "comparison.run",
    "compare_checkpoints": "comparison.run",
    "SummaryRow": "comparison.summary",
    "comparison_headlines": "comparison.summary",
    "summary_rows": "comparison.summary",
    "connect": "engine.cluster",
    "Progress": "engine.executor",
    "lock_journal": "engine.journal",
    "Engine": "engine.executor",
    "TensorResult": "engine.survey",
    "Curve": "measures.curves",
    "InitializationChange": "measures.initialization_change",
    "MatrixAnalysis": "measures.matrix",
    "Measurement": "measures.matrix",
    "NeededRank": "measures.needed",
    "Recommendation": "measures.recommendation",
    "Spectrum": "measures.spectrum",
    "CompareOptions": "options",
    "ComputeDtype": "options",
    "Mode": "options",
    "SurveyOptions": "options",
    "FrameColumn": "report.frame_columns",
    "frame_columns": "report.frame_columns",
    "headlines": "report.headlines",
    "write_report": "report.page",
    "Panel": "report.panel",
    "Scope": "report.scope",
    "headline_scope": "report.scope",
    "Analysis": "result",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = globals()[name] = getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
    return value


def __dir__() -> list[str]:
    return __all__
