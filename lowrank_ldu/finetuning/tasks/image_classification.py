"""Load tasks that put a label to an image."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from lowrank_ldu.errors import OptionError
from lowrank_ldu.finetuning import digits
from lowrank_ldu.finetuning.extra import require
from lowrank_ldu.finetuning.tasks.classifiers import classifier_on_meta, load_classifier, with_head
from lowrank_ldu.finetuning.tasks.data_files import LIMITS
from lowrank_ldu.finetuning.tasks.image_data import open_images
from lowrank_ldu.finetuning.tasks.image_rows import ImageRows, images_digest
from lowrank_ldu.finetuning.tasks.image_tasks import IMAGE_TASKS, ImageTask
from lowrank_ldu.finetuning.tasks.metrics import classification_metrics
from lowrank_ldu.finetuning.tasks.task import LoadedTask
from lowrank_ldu.validation import shown

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from torch import nn

    from lowrank_ldu.finetuning.configuration import RunConfig
    from lowrank_ldu.finetuning.tasks.meta_model import MetaModel

_METRIC = "accuracy"
_MODEL = "AutoModelForImageClassification"


class ImageClassification:
    """Offer sets of labeled images, any folder of them, and scikit-learn's digits."""

    TASKS: Mapping[str, ImageTask] = IMAGE_TASKS
    # Splits and columns are found by their usual names where they are not given. Without a split for validation it is
    # a fraction of the training images, so that tests are evaluated once. The rendering is of the digits.
    OPTIONS: Mapping[str, Any] = {
        "image_column": None,
        "label_column": None,
        "train_split": None,
        "validation_split": None,
        "test_split": None,
        "validation_fraction": 0.1,
        **LIMITS,
        "rendering": None,
    }

    def checked_options(self, given: Mapping[str, Any]) -> dict[str, Any]:
        """Check its own options, and fill in the defaults."""
        checked = {**self.OPTIONS, **given}
        fraction = checked["validation_fraction"]
        if isinstance(fraction, bool) or not isinstance(fraction, int | float) or not 0 < fraction < 1:
            raise OptionError(f"validation_fraction is {shown(fraction)}; accepted: a number between 0 and 1")
        for name, value in checked.items():
            if value is None or name == "validation_fraction":
                continue
            if name in LIMITS:
                if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                    raise OptionError(f"{name} is {shown(value)}; accepted: an integer from 1 on")
            elif not isinstance(value, str) or not value:
                raise OptionError(f"{name} is {shown(value)}; accepted: a name")
        if checked["rendering"] not in {None, *digits.SHIFTS}:
            raise OptionError(f"rendering is {shown(checked['rendering'])}; accepted: {', '.join(digits.SHIFTS)}")
        return checked

    def meta_model(self, config: RunConfig, *, download: bool) -> MetaModel | None:
        """Build the model without numbers; see `Kind.meta_model`."""
        if config.model == digits.MODEL:
            with torch.device("meta"):
                return with_head(config, digits.build_vision_transformer())
        return classifier_on_meta(config, _MODEL, download=download)

    def load(self, config: RunConfig) -> LoadedTask:
        """Load the model and the data of a run."""
        splits, names = open_images(config, self.TASKS[config.task])
        digest = images_digest(splits)
        model, processor = _load_model(config, names)
        channels = getattr(model.config, "num_channels", 3)
        rows = {split: ImageRows(split, each, processor, channels) for split, each in splits.items()}
        _check_size(config, model, rows["train"])
        return LoadedTask(
            model=model,
            head=with_head(config, model).head,
            task_type=None,
            train=rows.pop("train"),
            validation=rows.pop("validation"),
            others=rows,
            collator=require("transformers").DefaultDataCollator(),
            compute_metrics=classification_metrics([_METRIC]),
            metric=_METRIC,
            data_digest=digest,
        )


def _load_model(config: RunConfig, names: Sequence[str]) -> tuple[Any, Any]:
    if config.model == digits.MODEL:
        model, processor = digits.pretrained_digits_vit()
        if model.config.num_labels != len(names):
            raise OptionError(
                f"model is {config.model!r}, whose head has {model.config.num_labels} outputs; accepted for "
                f"{config.task} with {len(names)} labels: another model"
            )
        return model, processor
    transformers = require("transformers")
    return load_classifier(
        config,
        getattr(transformers, _MODEL),
        # The other backend needs torchvision, and resizes to other numbers.
        lambda: transformers.AutoImageProcessor.from_pretrained(config.model, backend="pil"),
        names,
    )


@torch.no_grad()
def _check_size(config: RunConfig, model: nn.Module, rows: ImageRows) -> None:
    """Refuse a model that cannot take what its image processor makes."""
    modes = [(module, module.training) for module in model.modules()]
    pixels = torch.as_tensor(rows[0]["pixel_values"])[None]
    try:
        model.eval()(pixel_values=pixels)
    except (ValueError, RuntimeError) as error:
        reason = " ".join(str(error).split())
        raise OptionError(
            f"model is {config.model!r}, which does not take images of {tuple(pixels.shape[1:])}, as its image "
            f"processor makes them ({reason}); accepted: a model with its own processor"
        ) from error
    finally:
        for module, mode in modes:
            module.training = mode
