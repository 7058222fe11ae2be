"""Folders of small images whose color tells the label, and a tiny vision transformer with its image processor."""

from functools import partial

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import ViTConfig, ViTForImageClassification
from transformers.models.vit import image_processing_pil_vit

from lowrank_ldu.finetuning.digits import base as digits_base
from lowrank_ldu.finetuning.digits.pretraining import PretrainingSettings, pretrain

LABELS = ("blue", "green", "red")
_CHANNELS = {"red": 0, "green": 1, "blue": 2}
SIDE = 16


def separate_cache(folder):
    """What datasets keeps goes into a folder of the test."""
    patch = pytest.MonkeyPatch()
    patch.setattr("datasets.config.HF_DATASETS_CACHE", folder)
    return patch


def pretrain_briefly(patch, folder):
    """The network of digits is trained for one epoch instead of 40, and kept in a folder of the test."""
    patch.setattr(digits_base, "cache_folder", lambda: folder)
    patch.setattr(digits_base, "pretrain", partial(pretrain, settings=PretrainingSettings(epochs=1)))


def picture(label, seed, side=SIDE):
    """Noise in which one channel is a little brighter."""
    pixels = np.random.default_rng(seed).integers(0, 160, (side, side, 3))
    pixels[..., _CHANNELS[label]] += 40
    return Image.fromarray(pixels.astype(np.uint8))


def save_images(folder, suffix="png", labels=LABELS, **sizes):
    """SPLIT/LABEL/NUMBER.png, so many of each split."""
    for place, (split, number) in enumerate({"train": 48, "validation": 24, "test": 24, **sizes}.items()):
        for each in range(number):
            label = labels[each % len(labels)]
            path = folder / split / label / f"{each:03}.{suffix}"
            path.parent.mkdir(parents=True, exist_ok=True)
            picture(LABELS[each % len(labels)], 1000 * place + each).save(path)
    return folder


def processor(side=SIDE):
    size = {"height": side, "width": side}
    return image_processing_pil_vit.ViTImageProcessorPil(size=size)


def save_vit(folder, side=SIDE, channels=3, **options):
    """A body without a head, or with one where `num_labels` is given."""
    torch.manual_seed(0)
    config = ViTConfig(
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        image_size=SIDE,
        patch_size=8,
        num_channels=channels,
        initializer_range=0.2,
        **options,
    )
    model = ViTForImageClassification(config)
    (model if "num_labels" in options else model.base_model).save_pretrained(folder)
    processor(side).save_pretrained(folder)
    return folder
