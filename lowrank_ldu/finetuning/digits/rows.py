"""Give the digits as rows of images and labels."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from lowrank_ldu.finetuning.digits.data import DEFAULT_SHIFT, GRAY_LEVELS, load_digits_split
from lowrank_ldu.finetuning.extra import require

if TYPE_CHECKING:
    import torch

    from lowrank_ldu.finetuning.digits.data import Images

# Gray levels 0 to 16 become 0 to 240 of an image of 8 bits.
BRIGHTNESS = 15


def digits_splits(shift: str = DEFAULT_SHIFT) -> dict[str, Any]:
    """Return the digits that the network was not pre-trained on.

    Parameters
    ----------
    shift : str
        Rendering of the images, a key of `lowrank_ldu.finetuning.digits.SHIFTS`.

    Returns
    -------
    dict
        "train" (300 rows), "validation" (150) and "test" (747) to datasets.Dataset, with columns "image" and "label".
    """
    split = load_digits_split(shift=shift)
    parts = {"train": split.training, "validation": split.validation, "test": split.test}
    return {name: _rows(images) for name, images in parts.items()}


def _rows(images: Images) -> Any:
    datasets = require("datasets")
    names = [str(digit) for digit in range(10)]
    return datasets.Dataset.from_dict(
        {
            "image": [{"bytes": _encoded(pixels[0]), "path": None} for pixels in images.pixels],
            "label": images.labels.tolist(),
        },
        features=datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=names)}),
    )


def _encoded(pixels: torch.Tensor) -> bytes:
    """Write pixels of -1 to 1 as a PGM image, whose bytes depend on no library's version."""
    levels = ((pixels + 1) * (GRAY_LEVELS / 2)).round().byte() * BRIGHTNESS
    height, width = levels.shape
    return f"P5 {width} {height} 255\n".encode() + levels.numpy().tobytes()
