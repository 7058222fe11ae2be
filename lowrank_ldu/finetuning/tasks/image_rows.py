"""Make a model's inputs of encoded images, when they are asked for."""

from __future__ import annotations

import hashlib
import io
from typing import TYPE_CHECKING, Any

import numpy as np

from lowrank_ldu.errors import OptionError
from lowrank_ldu.finetuning.extra import require
from lowrank_ldu.finetuning.tasks.image_data import IMAGE, LABEL

if TYPE_CHECKING:
    from collections.abc import Mapping

# Of the image that a model with so many channels takes.
_MODES = {1: "L", 3: "RGB"}
# Bytes of prepared images, in each split.
_MOST_KEPT = 2**26
# JPEG images are decoded at an eighth of their size where only their wholeness is of interest.
_SMALL = (1, 1)


class ImageRows:
    """Hold the images and labels of a split, as a model takes them.

    Images are decoded, resized and normalized each time, but for the first ones: all of them at once would take
    gigabytes, and small sets are small.

    Parameters
    ----------
    split : str
        For messages.
    rows : datasets.Dataset
        Of `open_images`.
    processor : transformers.BaseImageProcessor
    channels : int
        Of the model.
    """

    def __init__(self, split: str, rows: Any, processor: Any, channels: int) -> None:
        if channels not in _MODES:
            raise OptionError(f"the model takes images of {channels} channels; accepted: 1 or 3")
        self._split = split
        self._rows = rows
        self._processor = processor
        self._mode = _MODES[channels]
        self._feature = require("datasets").Image()
        self._kept: dict[int, Any] = {}
        self._room = _MOST_KEPT

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, place: int) -> dict[str, Any]:
        place = int(place)
        row = self._kept.get(place)
        if row is None:
            row = self._made(place)
            size = row["pixel_values"].nbytes
            if size <= self._room:
                self._kept[place] = row
                self._room -= size
        return dict(row)

    def _made(self, place: int) -> dict[str, Any]:
        row = self._rows[place]
        try:
            image = self._feature.decode_example(row[IMAGE])
        except Exception as error:  # PIL has no one kind for what is wrong with a file
            raise _broken(self._split, place, row[IMAGE], error) from error
        pixels = self._processor(np.atleast_3d(image.convert(self._mode)), input_data_format="channels_last")
        return {"pixel_values": np.asarray(pixels["pixel_values"][0]), "labels": row[LABEL]}


def images_digest(splits: Mapping[str, Any]) -> str:
    """Return the sha256 of all encoded images and labels.

    Parameters
    ----------
    splits : mapping
        Of `open_images`.

    Raises
    ------
    OptionError
        An image cannot be decoded, or has more than 8 bits a channel. It is said now, and not when training comes to
        it.
    """
    digest = hashlib.sha256()
    for split, rows in splits.items():
        digest.update(f"{split} {len(rows)}".encode())
        for place, row in enumerate(rows):
            try:
                content = _content(row[IMAGE])
                _check_whole(content)
            except Exception as error:  # as above
                raise _broken(split, place, row[IMAGE], error) from error
            digest.update(f" {row[LABEL]} {len(content)} ".encode())
            digest.update(content)
    return digest.hexdigest()


def _content(image: Mapping[str, Any] | None) -> bytes:
    if image is None:
        raise ValueError("it is null")
    if image["bytes"] is not None:
        return bytes(image["bytes"])
    # The path may lead into an archive.
    with require("fsspec").open(image["path"], "rb") as file:
        return bytes(file.read())


def _check_whole(content: bytes) -> None:
    with require("PIL.Image").open(io.BytesIO(content)) as image:
        # PIL cuts larger values off instead of scaling them.
        if image.mode.startswith(("I", "F")):
            raise ValueError(f"mode {image.mode}")
        image.draft(None, _SMALL)
        image.load()


def _broken(split: str, place: int, image: Mapping[str, Any] | None, error: Exception) -> OptionError:
    path = "" if image is None or image["path"] is None else f" ({image['path']})"
    reason = " ".join(str(error).split())
    if isinstance(error, require("PIL").UnidentifiedImageError):
        reason = "of no format that PIL knows"  # its own words have an address in them
    return OptionError(
        f"image {place} of the {split} images{path} cannot be used ({reason}); accepted: whole image files of 8 bits a "
        "channel"
    )
