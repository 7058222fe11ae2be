"""Read each kind of layer as a matrix, and compute its updates.

These are the kinds of layer that take an adapter; their updates have low rank.
"""

from lowrank_ldu.nn.kinds.base import LayerKind
from lowrank_ldu.nn.kinds.convolution import ConvolutionKind
from lowrank_ldu.nn.kinds.embedding import EmbeddingKind
from lowrank_ldu.nn.kinds.linear import LinearKind
from lowrank_ldu.nn.kinds.own_forward import lora_obstacle
from lowrank_ldu.nn.kinds.select import (
    ACCEPTED_LAYERS,
    KINDS,
    READ_PAST_ADAPTERS,
    is_linear,
    kind_named,
    kind_of,
    supports,
)
from lowrank_ldu.nn.kinds.transposed import TransposedLinearKind

__all__ = [
    "ACCEPTED_LAYERS",
    "KINDS",
    "READ_PAST_ADAPTERS",
    "ConvolutionKind",
    "EmbeddingKind",
    "LayerKind",
    "LinearKind",
    "TransposedLinearKind",
    "is_linear",
    "kind_named",
    "kind_of",
    "lora_obstacle",
    "supports",
]
