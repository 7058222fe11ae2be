"""Export adapters for programs without this package.

The exports are LoRA pairs, merged models and dense updates.
"""

from lowrank_ldu.adapters.exports.delta import DELTA_WEIGHTS, export_delta
from lowrank_ldu.adapters.exports.lora import LoraExport, export_lora
from lowrank_ldu.adapters.exports.merged import export_merged

__all__ = ["DELTA_WEIGHTS", "LoraExport", "export_delta", "export_lora", "export_merged"]
