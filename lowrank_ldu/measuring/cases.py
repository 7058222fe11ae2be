"""List the layers and batches that are measured."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from lowrank_ldu.errors import OptionError

StepMode = Literal["forward", "training"]
Preset = Literal["base", "quick", "llama", "decode"]
PRESETS: tuple[Preset, ...] = get_args(Preset)

# Adapters of a mixed batch, which is compared with a batch of one adapter.
ADAPTERS = 1000


@dataclass(frozen=True)
class Case:
    """Hold the shape of one layer and one batch.

    Attributes
    ----------
    out_features, in_features, tokens, rank : int
        m, n, T, r.
    modes : tuple of str
        "forward" without gradients; "training": forward and backward, with a gradient of x.
    """

    out_features: int
    in_features: int
    tokens: int
    rank: int
    modes: tuple[StepMode, ...] = ("forward", "training")

    @property
    def title(self) -> str:
        """Shape in words."""
        return f"{self.out_features} x {self.in_features}, T = {self.tokens}, r = {self.rank}"


def cases_of(preset: str, device: str) -> list[Case]:
    """Return the cases of a preset.

    "base": RoBERTa and ViT-B. "quick": one small layer. "llama": LLaMA-7B. "decode": single tokens.

    Parameters
    ----------
    preset : str
        One of `PRESETS`.
    device : str
        "cpu" or "cuda": a GPU takes more rows to fill.

    Raises
    ------
    ValueError
        There is no such preset.

    Examples
    --------
    >>> [case.title for case in cases_of("base", "cpu")]
    ['768 x 768, T = 2048, r = 64', '768 x 768, T = 6304, r = 768']
    """
    fast = device != "cpu"
    if preset == "base":
        # 6304 is a batch of 32 images of 197 patches, 25216 one of 128.
        return [Case(768, 768, 25216 if fast else 2048, 64), Case(768, 768, 25216 if fast else 6304, 768)]
    if preset == "quick":
        return [Case(768, 768, 8192 if fast else 512, 64)]
    if preset == "llama":
        tokens = 8192 if fast else 512
        return [
            Case(4096, 4096, tokens, 64),
            Case(4096, 4096, tokens, 4096),
            Case(11008, 4096, tokens, 64),
            Case(4096, 11008, tokens, 64),
        ]
    if preset == "decode":
        shapes = ((768, 768), (4096, 4096), (11008, 4096))
        return [Case(m, n, tokens, 64, ("forward",)) for m, n in shapes for tokens in (1, 8)]
    raise OptionError(f"preset is {preset!r}; accepted: {', '.join(map(repr, PRESETS))}")
