"""Read the weight of nn.Embedding as a matrix.

It is W (num_embeddings, embedding_dim), and the layer looks up rows of it.
"""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor, nn
from torch.nn.functional import embedding, linear

from lowrank_ldu.nn.cores import apply_core


class EmbeddingKind:
    """Embedding y = W[x] with W (num_embeddings, embedding_dim).

    W is the weight as it is stored, so that pivot rows are tokens.
    """

    name: ClassVar[str] = "embedding"
    linear: ClassVar[bool] = False

    @staticmethod
    def as_matrix(weight: Tensor) -> Tensor:
        """Return the weight."""
        return weight

    @staticmethod
    def as_weight(matrix: Tensor, weight: Tensor) -> Tensor:
        """Return the matrix."""
        return matrix.reshape(weight.shape)

    @staticmethod
    def update(module: nn.Module, x: Tensor, left: Tensor, right: Tensor, core: Tensor) -> Tensor:
        """Return left[x] K right for token numbers x (...)."""
        # apply_core multiplies by K^T.
        turned = core if core.ndim <= 2 else core.mT
        result = linear(apply_core(embedding(x, left), turned), right.T)
        if type(module).forward is nn.Embedding.forward:
            return result
        # Some models scale the rows that they look up, in a subclass's forward. The scale is a tensor in the weight's
        # dtype.
        scale = getattr(module, "embed_scale", None)
        if isinstance(scale, Tensor):
            scale = scale.to(left.dtype)
        return result if scale is None else result * scale

    @staticmethod
    def lora_pair(left: Tensor, right: Tensor) -> tuple[Tensor, Tensor]:
        """Return left^T (r, num_embeddings) and right^T (embedding_dim, r).

        LoRA adds (B A)^T to an embedding.
        """
        return left.T, right.T
