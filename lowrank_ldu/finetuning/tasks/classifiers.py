"""Load models that put a label or a number to an input."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from lowrank_ldu.errors import OptionError
from lowrank_ldu.finetuning.tasks.meta_model import MetaModel, built

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from torch import nn

    from lowrank_ldu.finetuning.configuration import RunConfig


def load_classifier(
    config: RunConfig, kind: Any, load_preparation: Callable[[], Any], labels: Sequence[str] | None
) -> tuple[nn.Module, Any]:
    """Load a model with a head of as many outputs as labels.

    Parameters
    ----------
    config : RunConfig
    kind : type
        One of transformers' automatic classes.
    load_preparation : callable
        Loads what prepares the model's inputs, such as a tokenizer.
    labels : sequence of str, optional
        Their names; None where a number is predicted.

    Returns
    -------
    model : transformers.PreTrainedModel
    preparation
        What `load_preparation` returned.

    Raises
    ------
    OptionError
        One of the two cannot be loaded, or the model has a head of another size.
    """
    count = 1 if labels is None else len(labels)
    # Half precision is for the products alone (bf16, fp16): what is trained stays in single.
    options: dict[str, Any] = {"num_labels": count, "dtype": torch.float32}
    options["problem_type"] = "regression" if labels is None else "single_label_classification"
    if labels is not None:
        options["id2label"] = dict(enumerate(labels))
        options["label2id"] = {name: number for number, name in enumerate(labels)}
    try:
        preparation = load_preparation()
        model = kind.from_pretrained(config.model, **options)
    except (OSError, ValueError, ImportError) as error:
        reason = " ".join(str(error).split())
        raise OptionError(f"model is {config.model!r}, which transformers cannot load: {reason}") from error
    except RuntimeError as error:
        if "mismatch" not in str(error):
            raise
        raise OptionError(
            f"model is {config.model!r}, whose head is not one of {count} outputs; accepted for {config.task}: a "
            f"model without a head, or with {count}"
        ) from error
    return model, preparation


def classifier_on_meta(config: RunConfig, kind: str, *, download: bool) -> MetaModel | None:
    """Build a classifier without numbers, by one of transformers' automatic classes.

    See `Kind.meta_model`.
    """
    model = built(kind, config.model, download=download)
    return None if model is None else with_head(config, model)


def with_head(config: RunConfig, model: Any) -> MetaModel:
    """Return a model with what is trained whole: what the run says, or its head."""
    return MetaModel(model, head_modules(model) if config.modules_to_save is None else config.modules_to_save)


def head_modules(model: Any) -> list[str]:
    """Return the modules beside a model's body that have parameters.

    Parameters
    ----------
    model : transformers.PreTrainedModel

    Returns
    -------
    list of str
    """
    return [
        name
        for name, module in model.named_children()
        if name != model.base_model_prefix and any(True for _ in module.parameters())
    ]
