"""Read an HDF5 file of Keras.

Its name ends in ``.weights.h5`` or ``.h5``.
"""

from __future__ import annotations

import re
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from lowrank_ldu.checkpoints.formats.numpy_file import of_dtype, torch_name
from lowrank_ldu.checkpoints.reader import MOMENT, CheckpointReader, TensorInfo, Unread
from lowrank_ldu.checkpoints.safe_reading import LIBRARY_ERRORS, library_for, reason_of, refused_as
from lowrank_ldu.errors import CheckpointError
from lowrank_ldu.untrusted import check_written, open_regular

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

# Keras keeps dense kernels as (in, out), and those of convolutions as (kernel..., in, out), transposed ones as
# (kernel..., out, in). Embeddings are (vocabulary, width). The path in the file names the layer, by its class if the
# user gave it no name.
_ORDERS = {2: (1, 0), 4: (3, 2, 0, 1)}
_ORDER_TRANSPOSED = (2, 3, 0, 1)
# Where Keras 2 and 3 keep the state of an optimizer, in files of whole models.
_OPTIMIZER = re.compile(r"optimizer_weights/|optimizer/vars/")
# Ratio of inflated to stored bytes: deflate reaches 1,032.
_MOST_INFLATED = 1100
# Far deeper than any model nests its layers.
_MOST_DEPTH = 64


class Hdf5Reader(CheckpointReader):
    """Reader of one HDF5 file of Keras 2 or 3.

    Every dataset is a tensor, called by its path in the file.

    Kernels are given with `TensorInfo.order`, since Keras stores them with the outputs last. Datasets that lie in other
    files are listed and not opened, and neither are links.

    Parameters
    ----------
    path : pathlib.Path
        The file.

    Raises
    ------
    CheckpointError
        If the file is missing or not a whole HDF5 file, or if h5py is not installed.
    """

    path: Path

    def __init__(self, path: Path) -> None:
        self._library = library_for(path, "h5py")
        with refused_as(path, "HDF5 file", LIBRARY_ERRORS), ExitStack() as opened:
            self._file = opened.enter_context(self._library.File(path, "r"))
            found = dict(self._walk(self._file, "", {self._address(self._file)}))
            tensors = [_info(item, name, path) for name, item in found.items() if not isinstance(item, str)]
            opened.pop_all()
        super().__init__(path, tensors, {name: item for name, item in found.items() if isinstance(item, str)})

    def _address(self, item: Any) -> Any:
        return self._library.h5o.get_info(item.id).addr

    def _walk(self, group: Any, prefix: str, seen: set[Any]) -> Iterator[tuple[str, Any]]:
        """Yield the datasets below a group by name.

        What cannot be loaded comes as a text that says why.
        """
        for key in group:
            name = f"{prefix}{key}"
            try:
                item = self._member(group, key, seen)
            except LIBRARY_ERRORS as error:  # one that is damaged takes no other with it
                item = Unread(f"member that cannot be read ({reason_of(error)})")
            if not isinstance(item, self._library.Group):
                yield name, item
            elif name.count("/") >= _MOST_DEPTH:
                yield name, Unread(f"group in more than {_MOST_DEPTH} others")
            else:
                yield from self._walk(item, f"{name}/", seen)

    def _member(self, group: Any, key: str, seen: set[Any]) -> Any:
        """Return a group or a tensor's dataset, or the obstacle.

        The obstacle is a text: why the member is neither of them.
        """
        if not isinstance(group.get(key, getlink=True), self._library.HardLink):
            return Unread("link, which may lead out of the file")
        item = group[key]
        # Hard links can make a group its own member.
        address = self._address(item)
        if address in seen:
            return "already listed under another name"
        seen.add(address)
        if isinstance(item, self._library.Group):
            return item
        if not isinstance(item, self._library.Dataset):
            return "named type"
        return what if (what := _not_a_tensor(item)) is not None else item

    def _read(self, info: TensorInfo) -> torch.Tensor:
        try:
            dataset = self._file[info.name]
            start = dataset.id.get_offset()
            if start is not None:
                with open_regular(self.path) as file:
                    check_written(file, start, info.nbytes)
            values = dataset[()]
        except LIBRARY_ERRORS as error:
            raise CheckpointError(f"{self.path}: dataset {info.name!r} cannot be read ({reason_of(error)})") from error
        if info.dtype == "bfloat16":
            return torch.from_numpy(np.ascontiguousarray(values).view(np.int16)).view(torch.bfloat16)
        return torch.from_numpy(np.asarray(values, values.dtype.newbyteorder("=")))

    def close(self) -> None:
        """Close the file."""
        super().close()
        self._file.close()


def _not_a_tensor(dataset: Any) -> str | None:
    """Return why a dataset is no tensor, or None.

    A tensor is in this file and can be loaded.
    """
    if dataset.external or dataset.is_virtual:
        return Unread("dataset of another file, which is not opened")
    if dataset.shape is None:
        return "empty dataset"
    if _torch_name(dataset) is None:
        return of_dtype(dataset.dtype, "dataset")
    declared, stored = dataset.nbytes, dataset.id.get_storage_size()
    if dataset.compression is None and not dataset.chunks and declared != stored:
        return Unread(f"dataset that is said to have {declared} bytes, of which {stored} are there")
    # Unwritten chunks cost nothing in the file and all of their size in memory, and zeros deflate a thousandfold.
    if dataset.chunks and declared > _MOST_INFLATED * max(stored, 1):
        return Unread(f"dataset that is said to have {declared} bytes, of which the file has {stored}")
    return None


def _torch_name(dataset: Any) -> str | None:
    # HDF5 has no bfloat16: Keras keeps two bytes of no type, and the name beside them.
    if dataset.dtype == np.dtype("V2") and dataset.attrs.get("dtype") == "bfloat16":
        return "bfloat16"
    return torch_name(dataset.dtype)


def _info(dataset: Any, name: str, path: Path) -> TensorInfo:
    shape = tuple(int(size) for size in dataset.shape)
    order = () if "embedding" in name.lower() else _ORDERS.get(len(shape), ())
    if len(shape) == 4 and "conv2d_transpose" in name.lower():
        order = _ORDER_TRANSPOSED
    reason = MOMENT if _OPTIMIZER.match(name) else ""
    return TensorInfo(
        name, shape, str(_torch_name(dataset)), str(path), int(dataset.nbytes), order=order, reason=reason
    )
