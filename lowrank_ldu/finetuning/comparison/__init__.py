"""Compare methods of fine-tuning: the same trials, seeds and rows for all."""

from __future__ import annotations

from lowrank_ldu.finetuning.comparison.compare import Trained, compare_methods
from lowrank_ldu.finetuning.comparison.entries import Entry, Selection, select_entries
from lowrank_ldu.finetuning.comparison.figure_tables import figure_rows, figure_sentences
from lowrank_ldu.finetuning.comparison.figures import figures_frame, find_figure
from lowrank_ldu.finetuning.comparison.frames import methods_frame, runs_frame
from lowrank_ldu.finetuning.comparison.intervals import Interval, interval, resampled_scores
from lowrank_ldu.finetuning.comparison.plan import Plan, plan_comparison
from lowrank_ldu.finetuning.comparison.plots import score_panel, sweep_panel
from lowrank_ldu.finetuning.comparison.report import sentences, table_rows, write_comparison

__all__ = [
    "Entry",
    "Interval",
    "Plan",
    "Selection",
    "Trained",
    "compare_methods",
    "figure_rows",
    "figure_sentences",
    "figures_frame",
    "find_figure",
    "interval",
    "methods_frame",
    "plan_comparison",
    "resampled_scores",
    "runs_frame",
    "score_panel",
    "select_entries",
    "sentences",
    "sweep_panel",
    "table_rows",
    "write_comparison",
]
