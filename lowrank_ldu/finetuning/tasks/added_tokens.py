"""Add tokens to a text encoder, whose embeddings alone are trained (Textual Inversion, arXiv 2208.01618)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from lowrank_ldu.errors import OptionError
from lowrank_ldu.files import whole_file

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor

# As diffusers' `load_textual_inversion` looks for it.
FILE = "learned_embeds.safetensors"


class ExtendedEmbedding(nn.Module):
    """Look up tokens in an embedding, and added ones in another.

    Parameters
    ----------
    base : nn.Embedding
        Of the first tokens.
    start : Tensor, shape (features,)
        Of each added token.
    number : int
        Of added tokens, whose ids follow those of the base.
    """

    def __init__(self, base: nn.Embedding, start: Tensor, number: int) -> None:
        super().__init__()
        self.base = base
        self.added = nn.Embedding(number, len(start), _weight=start.detach().float().repeat(number, 1))

    @property
    def weight(self) -> Tensor:
        """Weight of the base, by which dtype and device are told."""
        return self.base.weight

    def forward(self, ids: Tensor) -> Tensor:
        """Return the embeddings of tokens, in the dtype of the base."""
        first = self.base.num_embeddings
        own = self.base(ids.clamp(max=first - 1))
        added = self.added((ids - first).clamp(min=0)).to(own.dtype)
        return torch.where((ids >= first).unsqueeze(-1), added, own)


@dataclass(frozen=True)
class AddedTokens:
    """Hold what was added to a pipeline's tokenizer and text encoder.

    Attributes
    ----------
    token : str
        As it stands in prompts. With several vectors it stands for all of them, as diffusers has it.
    module : str
        Qualified name, in the text encoder, of the added embeddings.
    """

    token: str
    module: str

    def save(self, model: nn.Module, folder: Path) -> None:
        """Write the added embeddings as diffusers reads them.

        Parameters
        ----------
        model : nn.Module
            The text encoder.
        folder : pathlib.Path
            Gets learned_embeds.safetensors, with float32 of shape (vectors, features), or (features,) of one vector.
        """
        from safetensors.torch import save_file  # noqa: PLC0415  # few programs save

        vectors = model.get_parameter(f"{self.module}.weight").detach().float().cpu()
        with whole_file(folder / FILE) as path:
            save_file({self.token: vectors[0].clone() if len(vectors) == 1 else vectors.clone()}, path)


def add_tokens(pipeline: Any, token: str, initializer: str, number: int) -> AddedTokens:
    """Add tokens to a pipeline's tokenizer and text encoder, in place.

    Parameters
    ----------
    pipeline : diffusers.StableDiffusionPipeline
    token : str
        The new one. Further vectors have its name with _1, _2, ...
    initializer : str
        A token that is known, with whose embedding all of them start.
    number : int
        Of vectors.

    Returns
    -------
    AddedTokens

    Raises
    ------
    OptionError
        The token is known already, or the initializer is not one token.
    """
    tokenizer, encoder = pipeline.tokenizer, pipeline.text_encoder
    base = encoder.get_input_embeddings()
    if tokenizer.tokenize(token) == [token] or token in tokenizer.get_vocab():
        raise OptionError(f"placeholder_token is {token!r}, which the tokenizer knows; accepted: a new one")
    pieces = tokenizer.encode(initializer, add_special_tokens=False)
    if len(pieces) != 1:
        raise OptionError(f"initializer_token is {initializer!r}, which is {len(pieces)} tokens; accepted: one")
    known = base.num_embeddings
    if len(tokenizer) != known:
        raise OptionError(f"the tokenizer has {len(tokenizer)} tokens, the text encoder {known}; accepted: as many")
    tokenizer.add_tokens([token, *(f"{token}_{place}" for place in range(1, number))])
    extended = ExtendedEmbedding(base, base.weight[pieces[0]], number)
    encoder.set_input_embeddings(extended)
    (name,) = (name for name, module in encoder.named_modules() if module is extended)
    return AddedTokens(token, f"{name}.added")
