"""Adapters on disk: a few numbers per layer, and what they need to be put back exactly."""

from lowrank_ldu.adapters.exports import export_delta, export_lora, export_merged
from lowrank_ldu.adapters.file import AdapterFile, StoredLayer
from lowrank_ldu.adapters.loading import load_adapter
from lowrank_ldu.adapters.published import import_published
from lowrank_ldu.adapters.reading import read_adapter
from lowrank_ldu.adapters.records import stored_numbers
from lowrank_ldu.adapters.saving import save_adapter
from lowrank_ldu.errors import AdapterError

__all__ = [
    "AdapterError",
    "AdapterFile",
    "StoredLayer",
    "export_delta",
    "export_lora",
    "export_merged",
    "import_published",
    "load_adapter",
    "read_adapter",
    "save_adapter",
    "stored_numbers",
]
