"""What is stored as one tensor and used as several matrices, or turned: documented rules on names and shapes."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    import torch

    from lowrank_ldu.analysis.readers import TensorInfo

_EXPERTS = re.compile(r"(^|[._])experts?([._]|$)")
# Queries, keys and values below each other. BLOOM's and GPT-NeoX's `query_key_value` alternate head by head, and where
# keys have fewer heads than queries the sizes stand in no name: those stay whole.
_QKV = re.compile(r"(^|\.)(in_proj_weight|(c_attn|qkv|qkv_proj|Wqkv|to_qkv)\.weight)$")
# transformers' Conv1D, of GPT-2 and its like, keeps (in, out). GPT-BigCode uses the same names for (out, in): the MLP's
# first matrix, which widens, tells.
_CONV1D = re.compile(r"^(?P<model>|.*\.)h\.\d+\.(attn|crossattention|mlp)\.(c_attn|q_attn|c_proj|c_fc)\.weight$")
_WIDENING = ".mlp.c_fc.weight"


@dataclass(frozen=True)
class Part:
    """A matrix, and where it is.

    Attributes
    ----------
    info : TensorInfo
        As it is listed.
    source : str
        The stored tensor.
    take : callable, optional
        From the stored tensor to the part; all of it if not given.
    last : bool
        Whether no other part of the tensor follows.
    """

    info: TensorInfo
    source: str
    take: Callable[[torch.Tensor], torch.Tensor] | None = None
    last: bool = True


def transposed_names(tensors: Iterable[TensorInfo]) -> set[str]:
    """Return the names of weights that are stored as (in, out), as those of transformers' Conv1D are.

    Examples
    --------
    >>> from lowrank_ldu.analysis.readers import TensorInfo
    >>> shapes = {"h.0.mlp.c_fc.weight": (8, 32), "h.0.attn.c_proj.weight": (8, 8), "h.0.ln_1.weight": (8,)}
    >>> infos = [TensorInfo(name, shape, "float32", "model.safetensors", 0) for name, shape in shapes.items()]
    >>> sorted(transposed_names(infos))
    ['h.0.attn.c_proj.weight', 'h.0.mlp.c_fc.weight']
    """
    found = [
        (match["model"], info)
        for info in tensors
        if len(info.shape) == 2 and not info.order and (match := _CONV1D.match(info.name))
    ]
    models = {model for model, info in found if info.name.endswith(_WIDENING) and info.shape[0] < info.shape[1]}
    return {info.name for model, info in found if model in models}


def parts_of(info: TensorInfo, *, transposed: bool = False, scaled: bool = False) -> list[Part]:
    """Return the matrices that a stored tensor holds.

    Parameters
    ----------
    info : TensorInfo
        As it is stored.
    transposed : bool
        Whether it is one of `transposed_names`.
    scaled : bool
        Whether it is float8 with a scale beside it, and so loaded as float32.

    Returns
    -------
    list of Part
        A 3-D tensor with "experts" in its name: one for each expert, ``name[0]``, ``name[1]``, in the orientation that
        is stored. ``in_proj_weight`` and the weights of ``c_attn``, ``qkv``, ``qkv_proj``, ``Wqkv`` and ``to_qkv`` with
        three times as many outputs as inputs: ``name[q]``, ``name[k]`` and ``name[v]``. Anything else: itself.

    Examples
    --------
    >>> from lowrank_ldu.analysis.readers import TensorInfo
    >>> [part.info.name for part in parts_of(TensorInfo("qkv.weight", (12, 4), "float32", "a.pt", 192))]
    ['qkv.weight[q]', 'qkv.weight[k]', 'qkv.weight[v]']
    """
    source = info.name
    if scaled:
        info = replace(info, dtype="float32", stored_as=info.dtype)
    if transposed:
        info = replace(info, order=(1, 0))
    if len(info.shape) == 3 and _EXPERTS.search(info.name) and info.shape[0]:
        count, *shape = info.shape
        each = replace(info, shape=tuple(shape), nbytes=info.nbytes // count)
        return [
            Part(replace(each, name=f"{source}[{number}]"), source, partial(_row, number=number), number == count - 1)
            for number in range(count)
        ]
    if len(info.shape) == 2 and _QKV.search(info.name):
        out = info.order[0] if info.order else 0
        size, inputs = info.shape[out], info.shape[1 - out]
        if size == 3 * inputs and inputs:
            each = replace(info, shape=(inputs, inputs), nbytes=info.nbytes // 3)
            return [
                Part(
                    replace(each, name=f"{source}[{letter}]"),
                    source,
                    partial(_third, axis=out, number=number),
                    letter == "v",
                )
                for number, letter in enumerate("qkv")
            ]
    return [Part(info, source)]


def _row(tensor: torch.Tensor, number: int) -> torch.Tensor:
    return tensor[number]


def _third(tensor: torch.Tensor, axis: int, number: int) -> torch.Tensor:
    return tensor.chunk(3, dim=axis)[number]
