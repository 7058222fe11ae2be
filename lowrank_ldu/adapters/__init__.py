"""Save and load adapters.

A file holds a few numbers per layer, and the facts that put them back exactly.
"""

from lowrank_ldu.adapters.exports import export_delta, export_lora, export_merged
from lowrank_ldu.adapters.loading import load_adapter, read_adapter
from lowrank_ldu.adapters.published import import_published
from lowrank_ldu.adapters.saving import save_adapter
from lowrank_ldu.adapters.stored_layer import AdapterFile, StoredLayer
from lowrank_ldu.adapters.updates_reader import AdapterUpdates, open_updates
from lowrank_ldu.errors import AdapterError

__all__ = [
    "AdapterError",
    "AdapterFile",
    "AdapterUpdates",
    "StoredLayer",
    "export_delta",
    "export_lora",
    "export_merged",
    "import_published",
    "load_adapter",
    "open_updates",
    "read_adapter",
    "save_adapter",
]


def __dir__() -> list[str]:
    return __all__
