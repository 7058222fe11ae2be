"""Find the kind of a module."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import nn

from lowrank_ldu.nn.kinds.convolution import ConvolutionKind
from lowrank_ldu.nn.kinds.embedding import EmbeddingKind
from lowrank_ldu.nn.kinds.linear import LinearKind
from lowrank_ldu.nn.kinds.own_forward import check_forward
from lowrank_ldu.nn.kinds.transposed import TransposedLinearKind

if TYPE_CHECKING:
    from lowrank_ldu.nn.kinds.base import LayerKind

ACCEPTED_LAYERS = (
    "nn.Linear (quantized by bitsandbytes or torchao, too), transformers' Conv1D, nn.Conv1d, nn.Conv2d, nn.Conv3d, "
    "nn.Embedding"
)


# These modules read the weights of the layers inside them without calling the layers, at least on their fast path.
READ_PAST_ADAPTERS = (nn.MultiheadAttention, nn.TransformerEncoderLayer)

KINDS: dict[str, type[LayerKind]] = {
    kind.name: kind for kind in (LinearKind, TransposedLinearKind, ConvolutionKind, EmbeddingKind)
}


def kind_named(name: str) -> type[LayerKind]:
    """Return the kind of a name in `KINDS`."""
    return KINDS[name]


def kind_of(module: nn.Module) -> type[LayerKind]:
    """Return the kind of a module.

    Raises
    ------
    TypeError
        No kind is known for it.
    ValueError
        An embedding that renormalizes its weight as it looks rows up (max_norm), so that nothing can be factored; a
        layer with a forward of its own that cannot be called with another weight (`check_forward`).

    Examples
    --------
    >>> kind_of(nn.Conv2d(3, 8, 3)).name
    'convolution'
    """
    kind = _find(module)
    if kind is None:
        raise TypeError(f"the layer is a {type(module).__name__}; accepted: {ACCEPTED_LAYERS}")
    if kind is EmbeddingKind and module.max_norm is not None:
        raise ValueError(
            f"the embedding has max_norm {module.max_norm} and changes its weight in use; accepted: max_norm None"
        )
    check_forward(module)
    return kind


def supports(module: nn.Module) -> bool:
    """Return whether a kind is known for the module."""
    return _find(module) is not None


def is_linear(module: nn.Module) -> bool:
    """Return whether the module is a linear layer.

    "all-linear" takes these.
    """
    kind = _find(module)
    return kind is not None and kind.linear


def _find(module: nn.Module) -> type[LayerKind] | None:
    if isinstance(module, nn.Linear):
        return LinearKind
    if isinstance(module, (nn.Conv1d, nn.Conv2d, nn.Conv3d)):
        return ConvolutionKind
    if isinstance(module, nn.Embedding):
        return EmbeddingKind
    # By name: transformers need not be there, and need not be imported to tell.
    if any(
        (kind.__module__, kind.__name__) == ("transformers.pytorch_utils", "Conv1D") for kind in type(module).__mro__
    ):
        return TransposedLinearKind
    if any((kind.__module__, kind.__name__) == ("hqq.core.quantize", "HQQLinear") for kind in type(module).__mro__):
        return LinearKind
    return None
