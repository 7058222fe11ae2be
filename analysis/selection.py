"""Select the stored tensors that are matrices to factor."""

from __future__ import annotations

import math
import re
from typing import TYPE_CHECKING

from lowrank_ldu.checkpoints.reader import NO_WEIGHT, Unread
from lowrank_ldu.validation import DTYPES

if TYPE_CHECKING:
    import torch

    from lowrank_ldu.analysis.options import CompareOptions, SurveyOptions
    from lowrank_ldu.checkpoints import TensorInfo

# Reason of what readers ignore; what it begins with where that may hold weights; and of a matrix of one row or column.
NO_TENSOR = "not a plain tensor"
UNREAD = "not read, and may hold weights: "
RANK_ONE = "one side of the matrix is 1: its rank is 1 and there is nothing to choose"
_INTEGERS = re.compile(r"u?int\d+|bool")


def matrix_shape(shape: tuple[int, ...], order: tuple[int, ...] = ()) -> tuple[int, int]:
    """Return the shape (out, in) in which a weight is factored.

    (out, in * kh * kw) of a convolution.

    Parameters
    ----------
    shape : tuple of int
        As stored.
    order : tuple of int
        The stored axes in the order (out, in, kernel...); as they are if empty.

    Examples
    --------
    >>> matrix_shape((64, 3, 7, 7))
    (64, 147)
    >>> matrix_shape((7, 7, 3, 64), (3, 2, 0, 1))
    (64, 147)
    """
    out, *rest = (shape[axis] for axis in order) if order else shape
    return out, math.prod(rest)


def as_matrix(tensor: torch.Tensor, order: tuple[int, ...] = ()) -> torch.Tensor:
    """Return a weight as a matrix of `matrix_shape`.

    Memory is shared where the layout allows it.
    """
    return (tensor.permute(order) if order else tensor).reshape(matrix_shape(tuple(tensor.shape), order))


def skip_reason(info: TensorInfo, options: SurveyOptions) -> str | None:
    """Return why a tensor is skipped, None if it is not.

    As far as its name, shape and dtype tell.
    """
    return name_reason(info.name, options) or storage_reason(info)


def name_reason(name: str, options: SurveyOptions | CompareOptions) -> str | None:
    """Return why a name is left out, None if it is not."""
    if options.select is not None and not re.search(options.select, name):
        return "its name does not match the selection"
    if options.exclude is not None and re.search(options.exclude, name):
        return "its name is excluded"
    return None


def storage_reason(info: TensorInfo) -> str | None:
    """Return why a stored tensor is no matrix, None if it is."""
    return info.reason or _dtype_reason(info.dtype) or _shape_reason(info)


def dtype_in_words(info: TensorInfo) -> str:
    """Return the dtype as stored, and what it was dequantized to."""
    return f"{info.stored_as} as {info.dtype}" if info.stored_as else info.dtype


def _dtype_reason(dtype: str) -> str | None:
    if dtype in DTYPES:
        return None
    if _INTEGERS.fullmatch(dtype):
        return f"{dtype}: integers are not factored"
    if dtype.startswith("float8"):
        return (
            f"{dtype}: no scale beside it (NAME_scale_inv or NAME_scale: of the whole, of rows or of 128 x 128 blocks)"
        )
    return f"{dtype} is not supported; supported: {', '.join(DTYPES)}"


def _shape_reason(info: TensorInfo) -> str | None:
    shape, dimensions = info.shape, len(info.shape)
    if 0 in shape:
        return "it is empty"
    if dimensions < 2:
        return f"{dimensions}-D: no matrix to factor"
    if dimensions == 3 and not info.order and "conv" not in info.name.lower():
        return "3-D: neither experts nor a convolution by its name"
    if dimensions > 5:
        return f"{dimensions}-D: neither a matrix nor a convolution"
    if 1 in matrix_shape(shape, info.order):
        return RANK_ONE
    return None


def ignored_reason(what: str) -> str:
    """Return why something that a reader ignores is not analyzed.

    Examples
    --------
    >>> ignored_reason("int"), ignored_reason(Unread("sparse tensor"))
    ('not a plain tensor', 'not read, and may hold weights: sparse tensor')
    >>> ignored_reason("factor without the other one: it is no weight")
    'factor without the other one: it is no weight'
    """
    if isinstance(what, Unread):
        return f"{UNREAD}{what}"
    return what if what.endswith(NO_WEIGHT) else NO_TENSOR


def ignored_dtype(what: str) -> str:
    """Return what a table of dtypes says of something that a reader ignores: nothing where its reason says it.

    Examples
    --------
    >>> ignored_dtype("int"), ignored_dtype(Unread("sparse tensor"))
    ('int', '')
    """
    return what if ignored_reason(what) == NO_TENSOR else ""
