"""Measure factorizations: errors beside their yardsticks, conditioning, pivots, storage and cost."""

from lowrank_ldu.diagnostics.cost import stored_numbers
from lowrank_ldu.diagnostics.diagnose import diagnose
from lowrank_ldu.diagnostics.examination import Examination
from lowrank_ldu.diagnostics.expression import Expression, express
from lowrank_ldu.diagnostics.record import Diagnostics
from lowrank_ldu.diagnostics.target import Target

__all__ = ["Diagnostics", "Examination", "Expression", "Target", "diagnose", "express", "stored_numbers"]


def __dir__() -> list[str]:
    return __all__
