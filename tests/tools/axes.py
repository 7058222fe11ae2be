"""What is drawn on matplotlib axes, to compare it."""

import numpy as np


def drawn(axes):
    """What is on axes: title, label, points, lines and cells."""
    lines = [np.asarray(line.get_xydata()) for line in axes.lines]
    collections = [np.asarray(each.get_offsets()) for each in axes.collections]
    cells = [np.ma.filled(each.get_array(), np.nan) for each in axes.collections if each.get_array() is not None]
    return [axes.get_title(loc="left"), axes.get_xlabel(), *lines, *collections, *cells]


def assert_same(first, second):
    assert len(first) == len(second)
    for one, other in zip(first, second, strict=True):
        if isinstance(one, str):
            assert one == other
        else:
            np.testing.assert_array_equal(one, other)
