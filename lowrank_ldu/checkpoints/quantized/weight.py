"""Describe a quantized weight that a scheme finds.

It is a matrix, the tensors it is stored in, and how it is made of them.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from lowrank_ldu.errors import CheckpointError, RemoteError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    import torch

    from lowrank_ldu.checkpoints.model_config import ModelConfig
    from lowrank_ldu.checkpoints.reader import CheckpointReader, TensorInfo

FLOATS = ("float32", "float16", "bfloat16", "float64")
INTEGERS = ("int32", "int64")
# Bytes of a description: a few lines of text, stored as a tensor.
_MOST_DESCRIBED = 2**16


@dataclass(frozen=True)
class QuantizedWeight:
    """Hold a quantized weight and how to dequantize it.

    Attributes
    ----------
    info : TensorInfo
        Of the weight as it is listed; if it cannot be dequantized, as it is stored, with the reason.
    roles : dict of str to str
        The stored tensors by what they are for.
    dequantize : callable, optional
        Called with the stored tensors under the names of their roles; gives the weight, float32.
    """

    info: TensorInfo
    roles: dict[str, str]
    dequantize: Callable[..., torch.Tensor] | None = None


class Stored:
    """Hold the tensors of a checkpoint, to look for quantized ones.

    Parameters
    ----------
    reader : CheckpointReader
    config_of : callable
        From a tensor to the configuration beside it.

    Attributes
    ----------
    tensors : dict of str to TensorInfo
        By name.
    config_of : callable
        As given.
    """

    def __init__(self, reader: CheckpointReader, config_of: Callable[[TensorInfo], ModelConfig]) -> None:
        self.tensors = {info.name: info for info in reader.tensors}
        self.config_of = config_of
        self._reader = reader

    def roles(self, names: Mapping[str, str]) -> dict[str, str]:
        """Return those of the roles whose tensor is there."""
        return {role: name for role, name in names.items() if name in self.tensors}

    def description(self, name: str) -> torch.Tensor | None:
        """Read a tensor that describes others.

        None if it is too large for that or cannot be read.
        """
        if self.tensors[name].nbytes > _MOST_DESCRIBED:
            return None
        try:
            return self._reader.load(name)
        except RemoteError:
            raise
        except (CheckpointError, MemoryError):
            return None


def quantized_weight(
    stored: Stored,
    main: TensorInfo,
    roles: dict[str, str],
    dequantize: Callable[..., torch.Tensor],
    *,
    scheme: str,
    shape: tuple[int, ...],
    name: str = "",
) -> QuantizedWeight:
    """Return a quantized weight of the given shape.

    It is called as its main tensor if no name is given.
    """
    nbytes = sum(stored.tensors[other].nbytes for other in roles.values())
    info = replace(main, name=name or main.name, shape=shape, dtype="float32", stored_as=scheme, nbytes=nbytes)
    return QuantizedWeight(info, roles, dequantize)


def refused(main: TensorInfo, roles: dict[str, str], scheme: str, problem: str) -> QuantizedWeight:
    """Return a weight that cannot be dequantized.

    It says the scheme and the reason.
    """
    return QuantizedWeight(replace(main, reason=f"{scheme}: {problem}"), roles)


def missing(roles: Mapping[str, str], names: Mapping[str, str], needed: Iterable[str]) -> str | None:
    """Return what is missing, in words, or None."""
    absent = [names[role] for role in needed if role not in roles]
    return f"nothing is called {' or '.join(map(repr, absent))}" if absent else None
