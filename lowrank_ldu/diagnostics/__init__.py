"""What a factorization is worth: errors beside their yardsticks, conditioning, pivots, storage and cost."""

from lowrank_ldu.diagnostics.diagnose import diagnose
from lowrank_ldu.diagnostics.examination import Examination
from lowrank_ldu.diagnostics.record import Diagnostics
from lowrank_ldu.diagnostics.target import Target

__all__ = ["Diagnostics", "Examination", "Target", "diagnose"]


def __dir__() -> list[str]:
    return __all__
