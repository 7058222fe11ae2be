"""Define the interface of all checkpoint readers."""

from __future__ import annotations

import difflib
from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, Self

from lowrank_ldu.checkpoints.remote.path import RemotePath
from lowrank_ldu.errors import CheckpointError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from types import TracebackType

    import torch

    from lowrank_ldu.checkpoints.remote.path import Place

# What the reason of a tensor ends in that no layer multiplies by.
NO_WEIGHT = ": it is no weight"
# The reason of a tensor that an optimizer keeps beside the weights.
MOMENT = f"kept by an optimizer{NO_WEIGHT}"
# What the reason of a tensor begins with that is listed under another name before.
SAME_TENSOR = "the same tensor as "


class Unread(str):
    """Describe what is not loaded as a tensor, and may hold weights all the same."""

    __slots__ = ()


@dataclass(frozen=True)
class TensorInfo:
    """Hold what is known of a tensor without its values.

    Attributes
    ----------
    name : str
        The name that `CheckpointReader.load` takes.
    shape : tuple of int
        The stored shape; empty for a scalar.
    dtype : str
        torch's short name of the type that is loaded (``"float32"``, ``"bfloat16"``, ``"int64"``,
        ``"float8_e4m3fn"``); for a type that torch has no tensors of, the name the file gives it (``"F6_E2M3"``).
    file : str
        Path of the file that holds the values, or its URL without secrets.
    nbytes : int
        Size of the values, in bytes, as they are stored.
    stored_as : str
        The file's own name of the stored type where it is not `dtype`, to which it is dequantized (``"Q4_K"``).
    order : tuple of int
        Where the format keeps weights in another order than (out, in, kernel...): the stored axes in that one.
    reason : str
        Why the values are no weights, where more is known of it than dtype and shape tell.
    part_of : str
        The stored tensor that this one is a part of, if it is: the parts are loaded best one after another.
    rank : int
        Of the factors that are stored, where the values are their product: r (m + n) numbers. 0 where they are not.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    file: str
    nbytes: int
    stored_as: str = ""
    order: tuple[int, ...] = ()
    reason: str = ""
    part_of: str = ""
    rank: int = 0


class CheckpointReader(ABC):
    """Hold an open checkpoint, whose tensors are loaded one by one.

    A reader is a context manager. Tensors that were loaded stay valid after it is closed.

    Attributes
    ----------
    path : pathlib.Path or RemotePath
        What was opened: a file or a directory, here or on a server.
    tensors : list of TensorInfo
        Every tensor that can be loaded, in file order.
    ignored : dict of str to str
        What the files hold besides plain tensors: name, and what it is (``{"epoch": "int"}``).
    holds_updates : bool
        Whether the tensors are updates of a model's weights, as of an adapter.
    no_weights : str
        Why the tensors are neither weights nor updates, and what is accepted, where they are known to be none.
    other_files : tuple of pathlib.Path
        Files that values are in, other than those that the tensors name.
    """

    holds_updates = False
    no_weights = ""
    other_files: tuple[Path, ...] = ()

    def __init__(self, path: Place, tensors: Iterable[TensorInfo], ignored: Mapping[str, str]) -> None:
        self.path = path
        self.tensors = list(tensors)
        self.ignored = dict(ignored)
        self._by_name = {info.name: info for info in self.tensors}
        self._closed = False

    def load(self, name: str) -> torch.Tensor:
        """Read one tensor.

        Parameters
        ----------
        name : str
            One of the names in `tensors`.

        Returns
        -------
        torch.Tensor
            The values, on the CPU, with the shape and dtype that are listed.

        Raises
        ------
        CheckpointError
            If there is no such tensor, if its values cannot be read, or if the reader is closed.
        """
        return self._read(self.info(name))

    def info(self, name: str) -> TensorInfo:
        """Return what is known of one tensor that can be loaded.

        Raises
        ------
        CheckpointError
            If there is no such tensor, or if the reader is closed.
        """
        if self._closed:
            raise CheckpointError(f"{self.path}: the reader is closed; open the checkpoint again to load {name!r}")
        info = self._by_name.get(name)
        if info is None:
            close = difflib.get_close_matches(name, self._by_name, n=3)
            hint = f"close names: {', '.join(map(repr, close))}" if close else f"it has {len(self.tensors)} tensors"
            raise CheckpointError(f"{self.path}: no tensor {name!r}; {hint}")
        return info

    def place(self, info: TensorInfo) -> Place:
        """Return the file that holds a tensor of this checkpoint."""
        return self.path.file(info.file) if isinstance(self.path, RemotePath) else Path(info.file)

    @abstractmethod
    def _read(self, info: TensorInfo) -> torch.Tensor:
        """Read the values of a tensor of this checkpoint."""

    def give_up(self) -> None:
        """End a reading from a server that another thread is at; it fails."""
        if isinstance(self.path, RemotePath):
            self.path.give_up()

    def close(self) -> None:
        """Let go of the files; closing again does nothing."""
        self._closed = True

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()


class Update(NamedTuple):
    """Hold the update of one weight.

    Attributes
    ----------
    matrix : torch.Tensor, shape (m, n)
    deviation : str, optional
        How the weight, or the update, differs from those of training, where that was accepted.
    """

    matrix: torch.Tensor
    deviation: str | None = None


class UpdatesReader(CheckpointReader):
    """Hold an open adapter whose updates depend on the weights that they are of.

    A shape in `tensors` is that of the weight as a matrix (out, in), or empty where the adapter does not say.

    Attributes
    ----------
    accepts_other_base : bool
        Whether weights that are not those of training are taken as they are.
    """

    holds_updates = True
    accepts_other_base = False

    @abstractmethod
    def update_of(self, name: str, weight: torch.Tensor) -> Update:
        """Return the update of one weight.

        Parameters
        ----------
        name : str
            One of the names in `tensors`.
        weight : torch.Tensor, shape (m, n)
            The base weight as a matrix (out, in), in the dtype in which it is stored.

        Returns
        -------
        Update

        Raises
        ------
        CheckpointError
            The weight is not the one of training, and that was not accepted; or there is no such update.
        """

    def _read(self, info: TensorInfo) -> torch.Tensor:
        raise CheckpointError(
            f"{self.path}: the update of {info.name!r} is made from its base weight; accepted: update_of(name, weight)"
        )
