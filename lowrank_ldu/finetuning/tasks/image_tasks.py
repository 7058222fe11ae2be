"""List the tasks of image classification: labels and their columns."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class ImageTask:
    """Hold what a task of images and labels consists of.

    Attributes
    ----------
    labels : int, optional
        Number of labels; None where the data say it.
    label_columns : tuple of str
        Columns that the labels may be in; the first one that the data have counts.
    embedded : bool
        Whether the data are scikit-learn's digits, and come with it.
    """

    labels: int | None
    label_columns: tuple[str, ...] = ("label",)
    embedded: bool = False


IMAGE_TASKS = {
    "cifar10": ImageTask(10),
    # On the hub it has a coarse label, too.
    "cifar100": ImageTask(100, ("fine_label", "label")),
    "eurosat": ImageTask(10),
    "stanford_cars": ImageTask(196),
    "flowers102": ImageTask(102),
    # Its labels are the variants, of which families and manufacturers are made.
    "fgvc_aircraft": ImageTask(100, ("variant", "label")),
    "images": ImageTask(None),
    "digits": ImageTask(10, embedded=True),
}
