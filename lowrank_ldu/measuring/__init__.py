"""Measure one linear layer in every way of computing it."""

from lowrank_ldu.measuring.cases import PRESETS, Case, cases_of
from lowrank_ldu.measuring.neighbor import busy_neighbor
from lowrank_ldu.measuring.plot import write_plots
from lowrank_ldu.measuring.run import expected_seconds, run_case
from lowrank_ldu.measuring.table import COLUMNS, Row, read_rows, write_rows

__all__ = [
    "COLUMNS",
    "PRESETS",
    "Case",
    "Row",
    "busy_neighbor",
    "cases_of",
    "expected_seconds",
    "read_rows",
    "run_case",
    "write_plots",
    "write_rows",
]


def __dir__() -> list[str]:
    return __all__
