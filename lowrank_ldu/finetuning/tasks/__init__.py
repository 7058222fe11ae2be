"""List the kinds of tasks that recipes can be of."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lowrank_ldu.errors import OptionError
from lowrank_ldu.finetuning.tasks.causal_lm import CausalLm
from lowrank_ldu.finetuning.tasks.image_classification import ImageClassification
from lowrank_ldu.finetuning.tasks.meta_model import MetaModel
from lowrank_ldu.finetuning.tasks.task import Kind, LoadedTask
from lowrank_ldu.finetuning.tasks.text_classification import TextClassification
from lowrank_ldu.finetuning.tasks.text_to_image import TextToImage

if TYPE_CHECKING:
    from collections.abc import Mapping

KINDS: Mapping[str, Kind] = {
    "text-classification": TextClassification(),
    "image-classification": ImageClassification(),
    "causal-lm": CausalLm(),
    "text-to-image": TextToImage(),
}

__all__ = ["KINDS", "Kind", "LoadedTask", "MetaModel", "get_kind"]


def get_kind(name: str) -> Kind:
    """Return a kind of tasks by its name.

    Raises
    ------
    OptionError
        There is no such kind.
    """
    if name not in KINDS:
        raise OptionError(f"kind is {name!r}; accepted: {', '.join(KINDS)}")
    return KINDS[name]
