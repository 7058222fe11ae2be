"""Split stored tensors into the matrices of use.

One tensor may hold several matrices, or a turned one. The rules on names and shapes are documented.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING

from lowrank_ldu.checkpoints.combined_weights import combined_expert, combined_matrix, is_turned_expert

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    import torch

    from lowrank_ldu.checkpoints.combined_weights import Combined
    from lowrank_ldu.checkpoints.model_config import ModelConfig
    from lowrank_ldu.checkpoints.reader import TensorInfo

_EXPERTS = re.compile(r"(^|[._])experts?([._]|$)")
# Far more than any model has: a file of some bytes can say that there are more than the memory holds names of.
_MOST_EXPERTS = 2**14
# transformers' Conv1D, of GPT-2 and its like, keeps (in, out). GPT-BigCode uses the same names for (out, in): the MLP's
# first matrix, which widens, tells.
_CONV1D = re.compile(r"^(?P<model>|.*\.)h\.\d+\.(attn|crossattention|mlp)\.(c_attn|q_attn|c_proj|c_fc)\.weight$")
_WIDENING = ".mlp.c_fc.weight"


@dataclass(frozen=True)
class Part:
    """Hold a matrix, and where it is stored.

    Attributes
    ----------
    info : TensorInfo
        As it is listed.
    row : int, optional
        Of the stack that it is in; None if it is in none.
    take : callable, optional
        From the tensor, or its row, to the part; all of it if not given.
    """

    info: TensorInfo
    row: int | None = None
    take: Callable[[torch.Tensor], torch.Tensor] | None = None


def transposed_names(tensors: Iterable[TensorInfo]) -> set[str]:
    """Return the names of weights stored as (in, out).

    Those of transformers' Conv1D are.

    Examples
    --------
    >>> from lowrank_ldu.checkpoints import TensorInfo
    >>> shapes = {"h.0.mlp.c_fc.weight": (8, 32), "h.0.attn.c_proj.weight": (8, 8), "h.0.ln_1.weight": (8,)}
    >>> infos = [TensorInfo(name, shape, "float32", "model.safetensors", 0) for name, shape in shapes.items()]
    >>> sorted(transposed_names(infos))
    ['h.0.attn.c_proj.weight', 'h.0.mlp.c_fc.weight']
    """
    found = _conv1d_names(tensors)
    models = {model for model, info in found if info.name.endswith(_WIDENING) and info.shape[0] < info.shape[1]}
    return {info.name for model, info in found if model in models}


def undecided_names(tensors: Iterable[TensorInfo]) -> set[str]:
    """Return the names of weights that may be stored as (in, out), where what tells is not there.

    Examples
    --------
    >>> from lowrank_ldu.checkpoints import TensorInfo
    >>> undecided_names([TensorInfo("h.0.attn.c_proj.weight", (8, 8), "float32", "model.safetensors", 0)])
    {'h.0.attn.c_proj.weight'}
    """
    found = _conv1d_names(tensors)
    decided = {model for model, info in found if info.name.endswith(_WIDENING)}
    return {info.name for model, info in found if model not in decided}


def _conv1d_names(tensors: Iterable[TensorInfo]) -> list[tuple[str, TensorInfo]]:
    """Return weights that are called as those of Conv1D, each with its model."""
    return [
        (match["model"], info)
        for info in tensors
        if len(info.shape) == 2 and not info.order and (match := _CONV1D.match(info.name))
    ]


def parts_of(info: TensorInfo, config: ModelConfig, *, transposed: bool = False) -> list[Part]:
    """Return the matrices that a tensor holds.

    Parameters
    ----------
    info : TensorInfo
        Dequantized, if it is stored otherwise.
    config : ModelConfig
        Of the model, which tells where combined matrices are.
    transposed : bool
        Whether it is one of `transposed_names`.

    Returns
    -------
    list of Part
        A 3-D tensor with "experts" in its name: one for each expert, ``name[0]``, ``name[1]``, and of each
        ``name[0][gate]`` and ``name[0][up]`` where they are combined. Combined queries, keys and values: ``name[q]``,
        ``name[k]`` and ``name[v]``; a combined gate: ``name[gate]`` and ``name[up]``. Anything else: itself.

    Examples
    --------
    >>> from pathlib import Path
    >>> from lowrank_ldu.checkpoints.model_config import ModelConfig
    >>> from lowrank_ldu.checkpoints import TensorInfo
    >>> info = TensorInfo("qkv.weight", (12, 4), "float32", "a.pt", 192)
    >>> [part.info.name for part in parts_of(info, ModelConfig(Path("nowhere")))]
    ['qkv.weight[q]', 'qkv.weight[k]', 'qkv.weight[v]']
    """
    if info.reason:
        return [Part(info)]
    if transposed:
        info = replace(info, order=(1, 0))
    if len(info.shape) == 3 and _EXPERTS.search(info.name) and 0 not in info.shape and info.shape[0] <= _MOST_EXPERTS:
        return list(_experts(info, config))
    if len(info.shape) == 2:
        axis = info.order[0] if info.order else 0
        combined = combined_matrix(info.name, (info.shape[axis], info.shape[1 - axis]), config)
        if combined is not None:
            return list(_combined(info, replace(combined, axis=axis)))
    return [Part(info)]


def _experts(info: TensorInfo, config: ModelConfig) -> Iterator[Part]:
    count, *sides = info.shape
    shape = (sides[0], sides[1])
    combined = combined_expert(info.name, shape, config)
    order = (1, 0) if combined is not None and combined.axis else info.order
    if is_turned_expert(info.name, shape, config):
        order = (1, 0)
    for row in range(count):
        each = replace(info, name=f"{info.name}[{row}]", shape=shape, nbytes=info.nbytes // count, order=order)
        yield from [Part(each, row)] if combined is None else _combined(each, combined, row)


def _combined(info: TensorInfo, combined: Combined, row: int | None = None) -> Iterator[Part]:
    start = 0
    for letter, size in combined.sizes.items():
        outputs = combined.blocks * size
        shape = tuple(outputs if axis == combined.axis else side for axis, side in enumerate(info.shape))
        part = replace(
            info, name=f"{info.name}[{letter}]", shape=shape, nbytes=info.nbytes * outputs // combined.outputs
        )
        yield Part(part, row, partial(_outputs, combined=combined, start=start, size=size))
        start += size


def _outputs(matrix: torch.Tensor, combined: Combined, start: int, size: int) -> torch.Tensor:
    """Return what a part has of each block of the outputs."""
    shape, axis = matrix.shape, combined.axis
    blocks = matrix.reshape(*shape[:axis], combined.blocks, shape[axis] // combined.blocks, *shape[axis + 1 :])
    return blocks.narrow(axis + 1, start, size).flatten(axis, axis + 1)
