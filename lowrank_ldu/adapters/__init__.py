"""Adapters on disk: a few numbers per layer, and what they need to be put back exactly."""

from lowrank_ldu.adapters.errors import AdapterError
from lowrank_ldu.adapters.loading import load_adapter
from lowrank_ldu.adapters.saving import save_adapter

__all__ = ["AdapterError", "load_adapter", "save_adapter"]
