"""Read the tensors of a model in memory as those of a file are read."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch.nn.parameter import is_lazy

from lowrank_ldu.checkpoints.model_config import CONFIGURATIONS, ModelConfig, Section
from lowrank_ldu.checkpoints.reader import SAME_TENSOR, CheckpointReader, TensorInfo, Unread
from lowrank_ldu.validation import dtype_name

if TYPE_CHECKING:
    from collections.abc import Mapping

# Of torch itself: the numbers of these, and of their subclasses that change no operation, lie in their storage.
_OWN_DISPATCH = torch.Tensor.__torch_dispatch__


class MemoryReader(CheckpointReader):
    """Reader of tensors in memory.

    They are never changed, and none is copied that is on the CPU.

    Parameters
    ----------
    tensors : mapping of str to object
        As of `nn.Module.state_dict`. What is no dense tensor is ignored, with its type; what has no numbers here, or
        numbers that cannot be read, is listed with the reason, as is a tensor that is there under another name before.
    title : str
        What the tensors are of, for messages.
    """

    def __init__(self, tensors: Mapping[str, object], title: str) -> None:
        self._values: dict[str, torch.Tensor] = {}
        infos, ignored = [], {}
        known: dict[tuple[object, ...], str] = {}
        for name, value in tensors.items():
            if not isinstance(value, torch.Tensor) or is_lazy(value):
                ignored[name] = type(value).__name__
                continue
            if value.layout is not torch.strided or value.is_nested:
                ignored[name] = Unread(f"{value.dtype} tensor, {value.layout}, on {value.device}")
                continue
            self._values[name] = value.detach()
            problem = _problem(value, tensors, name)
            if not problem and not _has_own_operations(value):
                place = (value.data_ptr(), value.device, value.dtype, value.shape, value.stride(), value.is_neg())
                first = known.setdefault(place, name) if value.numel() else name
                problem = "" if first == name else f"{SAME_TENSOR}{first!r}"
            infos.append(_info(name, value, title, problem))
        super().__init__(Path(title), infos, ignored)

    def _read(self, info: TensorInfo) -> torch.Tensor:
        value = self._values[info.name]
        with torch.no_grad():
            if value.is_quantized or _has_own_operations(value):
                value = value.dequantize()
            return value.as_subclass(torch.Tensor).to("cpu").resolve_neg()

    def close(self) -> None:
        """Let go of the tensors."""
        super().close()
        self._values.clear()


def _info(name: str, value: torch.Tensor, title: str, problem: str) -> TensorInfo:
    dtype, stored_as = dtype_name(value), ""
    if value.is_quantized:
        dtype, stored_as = "float32", dtype
    elif _has_own_operations(value):
        stored_as = type(value).__name__
    return TensorInfo(name, tuple(value.shape), dtype, title, value.nbytes, stored_as, reason=problem)


def _problem(value: torch.Tensor, tensors: Mapping[str, object], name: str) -> str:
    """Return why the numbers of a tensor cannot be read, if so."""
    if value.device.type == "meta":
        return "it is on the meta device and has no numbers; accepted: a tensor on another device"
    if _has_own_operations(value):
        # Every tensor has the method; those classes that can be dequantized have their own.
        if type(value).dequantize is not torch.Tensor.dequantize:
            return ""
        return f"it is of type {type(value).__name__}; accepted: torch.Tensor, or a class with its own dequantize()"
    # In bitsandbytes' state dicts the scales stand beside the packed numbers.
    if getattr(value, "quant_state", None) is not None and f"{name}.absmax" not in tensors:
        return "it is packed by bitsandbytes; accepted: the module that holds it, or its state_dict()"
    storage = value.untyped_storage()
    if value.numel() and storage.nbytes() < value.itemsize * (1 + value.storage_offset() + _last(value)):
        return f"its storage was resized to {storage.nbytes()} bytes, as of a module that is sharded or offloaded"
    return ""


def _last(value: torch.Tensor) -> int:
    """Return how far the last entry is from the first."""
    return sum((size - 1) * stride for size, stride in zip(value.shape, value.stride(), strict=True))


def _has_own_operations(value: torch.Tensor) -> bool:
    return type(value).__torch_dispatch__ is not _OWN_DISPATCH


class MemoryConfig(ModelConfig):
    """Hold the configuration of a model in memory.

    Parameters
    ----------
    values : dict
        As of a file `config.json`; empty where there is none.
    """

    def __init__(self, values: dict[str, Any]) -> None:
        super().__init__(Path())
        self._values = values

    def _read(self, name: str) -> Section | None:
        return Section(self._values) if name == CONFIGURATIONS[0] and self._values else None
