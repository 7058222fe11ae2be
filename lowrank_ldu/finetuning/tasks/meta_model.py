"""Build models without numbers, of which layers' names and sizes are known."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from lowrank_ldu.finetuning.extra import require

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import nn


class MetaModel(NamedTuple):
    """Hold a model on the meta device, and what is trained whole.

    Attributes
    ----------
    model : nn.Module
    head : sequence of str
        As of `LoadedTask`.
    """

    model: nn.Module
    head: Sequence[str]


def built(kind: str, model: str, *, download: bool) -> Any | None:
    """Build a model of transformers from its configuration alone.

    Parameters
    ----------
    kind : str
        Name of one of transformers' automatic classes.
    model : str
        A folder, or an id on the hub.
    download : bool
        Whether the configuration may be fetched from the hub.

    Returns
    -------
    transformers.PreTrainedModel or None
        On the meta device; None where it cannot be had so, which is told when the model is loaded.
    """
    transformers = require("transformers")
    try:
        settings = transformers.AutoConfig.from_pretrained(model, local_files_only=not download)
        with torch.device("meta"):
            return getattr(transformers, kind).from_config(settings)
    # The last ones are of models that look at their numbers when they are made.
    except (OSError, ValueError, ImportError, KeyError, AttributeError, RuntimeError):
        return None
