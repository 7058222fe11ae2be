"""Read a file that ``torch.save`` wrote.

Its name ends in ``.pt``, ``.pth`` or ``.bin``.
"""

from __future__ import annotations

import pickle
import re
import struct
import sys
import warnings
import zipfile
import zlib
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch

from lowrank_ldu.checkpoints.reader import MOMENT, SAME_TENSOR, CheckpointReader, TensorInfo, Unread
from lowrank_ldu.checkpoints.safe_reading import LIBRARY_ERRORS, empty_tensor, likely_cause, stored_range
from lowrank_ldu.errors import CheckpointError
from lowrank_ldu.pickles import check_calls
from lowrank_ldu.untrusted import check_inflated, check_regular

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

# Far deeper than any training script nests, far shallower than Python's recursion limit.
_MAX_DEPTH = 32

# torch runs the pickle without checking it first.
_LOAD_ERRORS = (*LIBRARY_ERRORS, pickle.UnpicklingError, struct.error, zipfile.BadZipFile, zlib.error)


class TorchReader(CheckpointReader):
    """Reader of one file that ``torch.save`` wrote.

    It never runs code from the file.

    The values stay on disk until they are used, and are read then, not mapped: a file that becomes shorter is an error
    and not the end of the process. The format from before torch 1.6, archives with compressed members or of the other
    byte order, and what torch does not load without its values (sparse tensors, say) are read whole. Nested dicts,
    lists and tuples are flattened: ``{"model": {"weight": w}}`` gives ``"model.weight"``. A bare tensor is called
    ``"tensor"``.

    Parameters
    ----------
    path : pathlib.Path
        The file.

    Raises
    ------
    CheckpointError
        If the file is missing or damaged, if it holds no dict, list, tuple or tensor, or if reading it would mean
        running code.
    """

    def __init__(self, path: Path) -> None:
        self._places: dict[int, int] = {}
        content = self._load(path)
        self._values: dict[str, torch.Tensor] = {}
        ignored = {}
        reasons: dict[str, str] = {}
        known: dict[tuple[object, ...], str] = {}
        if isinstance(content, torch.Tensor):
            content = {"tensor": content}
        if not isinstance(content, dict | list | tuple):
            raise CheckpointError(
                f"{path}: holds one object of type {type(content).__name__}; accepted: a dict, list or tuple of "
                "tensors, or a tensor"
            )
        for name, value, moment in _leaves(content, path, (), set()):
            if isinstance(value, torch.Tensor) and _is_plain(value, self._places):
                if name in self._values:
                    raise CheckpointError(f"{path}: nested names joined with dots give two tensors called {name!r}")
                self._values[name] = value.detach()
                first = known.setdefault(_numbers(value), name) if value.numel() else name
                reasons[name] = MOMENT if moment else "" if first == name else f"{SAME_TENSOR}{first!r}"
            else:
                ignored[name] = _describe(value)
        super().__init__(
            path,
            (
                TensorInfo(
                    name,
                    tuple(value.shape),
                    str(value.dtype).removeprefix("torch."),
                    str(path),
                    value.nbytes,
                    reason=reasons[name],
                )
                for name, value in self._values.items()
            ),
            ignored,
        )

    def _load(self, path: Path) -> object:
        """Return what was saved, without values where possible.

        Values are left out where they can be found later.
        """
        with _refused(path):
            placed = _has_places(path)
            check_calls(path)
            if placed:
                try:
                    places = _places(path)
                    content = _unpickle(path, "meta")
                except pickle.UnpicklingError:
                    raise
                except _LOAD_ERRORS:
                    pass  # of tensors that have more than values; or the file is damaged, and is refused below
                else:
                    if _all_placed(content, places):
                        self._places = places
                        return content
                    del content
            check_regular(path)
            return _unpickle(path, "cpu")

    def _read(self, info: TensorInfo) -> torch.Tensor:
        value = self._values[info.name]
        if not value.is_meta:
            return value
        if value.numel() == 0:
            return empty_tensor(self.path, info.name, info.shape, value.dtype)
        start, itemsize = _place(value), value.itemsize
        count = 1 + sum((size - 1) * stride for size, stride in zip(value.shape, value.stride(), strict=True))
        first = int(value.storage_offset()) * itemsize
        nbytes = int(count) * itemsize
        stored = self._places[start]
        if first + nbytes > stored:
            raise CheckpointError(
                f"{self.path}: tensor {info.name!r} is said to end at byte {first + nbytes} of its storage, which has "
                f"{stored} bytes"
            )
        values = stored_range(self.path, info.name, start + first, nbytes)
        return torch.frombuffer(values, dtype=value.dtype).as_strided(info.shape, value.stride())

    def close(self) -> None:
        """Let go of the values."""
        super().close()
        self._values.clear()


def _unpickle(path: Path, device: str) -> object:
    """Return what was saved, without running its code.

    Every global that is not a plain tensor's is refused. On "meta" the tensors have no values.
    """
    with warnings.catch_warnings():
        # torch warns of pickles that it may not understand; whether it did is what is returned or raised.
        warnings.simplefilter("ignore", UserWarning)
        content: object = torch.load(path, map_location=device, weights_only=True)
    return content


def _place(value: torch.Tensor) -> int:
    """Return where a tensor's storage begins in the file.

    The tensor was loaded without values. -1 if no place is known.
    """
    place = getattr(value.untyped_storage(), "_checkpoint_offset", None)
    return -1 if place is None else int(place)


def _numbers(value: torch.Tensor) -> tuple[object, ...]:
    """Return which numbers of the file a tensor has: tied weights have the same."""
    storage = _place(value) if value.is_meta else value.untyped_storage().data_ptr()
    return storage, value.storage_offset(), value.dtype, value.shape, value.stride(), value.is_neg()


def _places(path: Path) -> dict[int, int]:
    """Return the start and size of an archive's storages.

    Sizes are in bytes, by the start.
    """
    with zipfile.ZipFile(path) as archive:
        sizes = {member.filename.partition("/")[2]: member.file_size for member in archive.infolist()}
    # torch.load finds them by this class, which has only some of its types annotated.
    records: Any = torch._C.PyTorchFileReader(str(path))  # noqa: SLF001
    names = [name for name in records.get_all_records() if name.startswith("data/")]
    return {records.get_record_offset(name): sizes[name] for name in names}


def _all_placed(content: object, places: dict[int, int]) -> bool:
    """Return whether torch told where each tensor's values are.

    Versions before 2.7 do not.
    """
    waiting, seen = [content], set()
    while waiting:
        value = waiting.pop()
        if isinstance(value, torch.Tensor):
            if value.is_meta and value.layout is torch.strided and value.numel() and _place(value) not in places:
                return False
        elif isinstance(value, dict | list | tuple) and id(value) not in seen:
            seen.add(id(value))
            waiting.extend(value.values() if isinstance(value, dict) else value)
    return True


@contextmanager
def _refused(path: Path) -> Iterator[None]:
    """Turn what torch raises into the one error that readers raise."""
    try:
        yield
    except CheckpointError:
        raise
    except _LOAD_ERRORS as error:
        # The rest of torch's message advises to load the file unsafely, which is not for us to pass on.
        reason = " ".join(re.split(r"\.\s|\n", str(error), maxsplit=1)[0].split()) or type(error).__name__
        if not isinstance(error, pickle.UnpicklingError):
            raise CheckpointError(f"{path}: not a readable torch file ({reason}); {likely_cause(path)}") from error
        wanted = re.search(r"GLOBAL (\S+)", str(error))
        if wanted is None:
            raise CheckpointError(
                f"{path}: its pickle is damaged or was not written by torch.save; pickles can run code, so only plain "
                "tensors saved with torch.save are accepted: save the weights as safetensors instead"
            ) from error
        raise CheckpointError(
            f"{path}: wants to run code when it is read (the global {wanted[1]!r}) and was refused; only plain tensors "
            "are accepted: save the weights as safetensors instead"
        ) from error


def _has_places(path: Path) -> bool:
    """Return whether values can be found by their offset.

    They can in a zip archive of this byte order with no compressed member.
    """
    with path.open("rb") as file:
        if file.read(4) != b"PK\x03\x04":
            return False
    with zipfile.ZipFile(path) as archive:
        members = archive.infolist()
        orders = [member for member in members if member.filename.endswith("/byteorder") and member.file_size < 10]
        native = all(archive.read(member) == sys.byteorder.encode() for member in orders)
    if any(member.filename.endswith("/constants.pkl") for member in members):
        raise CheckpointError(
            f"{path}: is a TorchScript archive, which holds code; accepted: plain tensors, such as the model's "
            "state_dict() saved as safetensors"
        )
    try:
        check_inflated(archive, path.stat().st_size)
    except ValueError as error:
        raise CheckpointError(f"{path}: {error}") from error
    # Values are read as they lie in the file.
    return native and all(member.compress_type == zipfile.ZIP_STORED for member in members)


def _leaves(
    value: object, path: Path, keys: tuple[str, ...], seen: set[int], *, moment: bool = False
) -> Iterator[tuple[str, object, bool]]:
    """Yield each value with its dotted name, and whether an optimizer keeps it.

    Values are what is not a container, in the order in which they were saved.
    """
    if not isinstance(value, dict | list | tuple):
        yield ".".join(keys), value, moment
        return
    moment = moment or _is_optimizer(value)
    if len(keys) > _MAX_DEPTH:
        raise CheckpointError(f"{path}: containers are nested deeper than {_MAX_DEPTH} levels, at {'.'.join(keys)!r}")
    if id(value) in seen:
        # A container may hold itself, or share one so often that a walk over all names would never end.
        yield ".".join(keys), value, moment
        return
    seen.add(id(value))
    for key, item in value.items() if isinstance(value, dict) else enumerate(value):
        yield from _leaves(item, path, (*keys, str(key)), seen, moment=moment)


def _is_optimizer(value: object) -> bool:
    """Return whether a container is what an optimizer of torch saves: its state, and the groups of parameters."""
    if not isinstance(value, dict) or not isinstance(value.get("state"), dict):
        return False
    groups = value.get("param_groups")
    return isinstance(groups, list) and all(isinstance(group, dict) and "params" in group for group in groups)


def _is_plain(value: torch.Tensor, places: dict[int, int]) -> bool:
    if value.layout is not torch.strided or value.is_quantized or value.is_nested:
        return False
    return value.device.type == "cpu" or (value.is_meta and _place(value) in places)


def _describe(value: object) -> str:
    if isinstance(value, torch.Tensor):
        return Unread(f"{value.dtype} tensor, {value.layout}, on {value.device}")
    if isinstance(value, dict | list | tuple):
        return f"{type(value).__name__} that is already listed under another name"
    return type(value).__name__
