"""Find the weights that one stored matrix combines.

The layouts are known by the model's configuration and the names of its tensors.

The layouts are those of the modeling code of transformers: what it does with the product of the combined matrix.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    from lowrank_ldu.checkpoints.model_config import ModelConfig, Section

# Queries, keys and values below each other, in equal parts; nothing needs to be known of the model.
_QKV = re.compile(r"(^|\.)(in_proj_weight|(c_attn|qkv|qkv_proj|Wqkv|to_qkv)\.weight)$")
_GATE_UP = re.compile(r"(^|\.)gate_up_proj\.weight$")
_EXPERTS_GATE_UP = re.compile(r"(^|\.)experts\.gate_up_proj$")
_EXPERTS_DOWN = re.compile(r"(^|\.)experts\.down_proj$")


@dataclass(frozen=True)
class Combined:
    """Hold how the outputs of one matrix are shared out.

    Attributes
    ----------
    blocks : int
        Equal blocks that the outputs consist of, each shared out in the same way.
    sizes : dict of str to int
        Of each part, how many outputs of a block are its own, in their order.
    axis : int
        Of the outputs, as stored.
    """

    blocks: int
    sizes: dict[str, int]
    axis: int = 0

    @property
    def outputs(self) -> int:
        """Count the outputs of all blocks."""
        return self.blocks * sum(self.sizes.values())


@dataclass(frozen=True)
class _Heads:
    """Hold an attention's numbers of heads, their size and the inputs."""

    queries: int
    keys: int
    size: int
    inputs: int


def _heads(section: Section) -> _Heads | None:
    inputs = section.integer("hidden_size", "n_embd", "d_model")
    queries = section.integer("num_attention_heads", "n_head", "n_heads")
    if inputs is None or queries is None:
        return None
    keys = section.integer("num_key_value_heads", "num_kv_heads") or queries
    size = section.integer("head_dim") or inputs // queries
    return _Heads(queries, keys, size, inputs) if size else None


def _stacked(heads: _Heads, _section: Section) -> Combined:
    own, shared = heads.queries * heads.size, heads.keys * heads.size
    return Combined(1, {"q": own, "k": shared, "v": shared})


def _one_key_head(heads: _Heads) -> Combined:
    return Combined(1, {"q": heads.queries * heads.size, "k": heads.size, "v": heads.size})


def _head_by_head(heads: _Heads, _section: Section) -> Combined:
    return Combined(heads.queries, dict.fromkeys("qkv", heads.size))


def _falcon(heads: _Heads, section: Section) -> Combined | None:
    if section.flag("new_decoder_architecture", default=False):
        if heads.queries % heads.keys:
            return None
        return Combined(heads.keys, {"q": heads.queries // heads.keys * heads.size, "k": heads.size, "v": heads.size})
    return _one_key_head(heads) if section.flag("multi_query", default=True) else _head_by_head(heads, section)


def _gpt_bigcode(heads: _Heads, section: Section) -> Combined:
    return _one_key_head(heads) if section.flag("multi_query", default=True) else _head_by_head(heads, section)


def _codegen(heads: _Heads, _section: Section) -> Combined | None:
    # In four parts, since it was trained on as many cores; values come before keys.
    part = heads.queries * heads.size // 4
    return Combined(4, dict.fromkeys("qvk", part))


_QUERY_KEY_VALUE = re.compile(r"(^|\.)query_key_value\.weight$")
_ATTENTIONS: dict[str, tuple[re.Pattern[str], Callable[[_Heads, Section], Combined | None]]] = {
    "phi3": (re.compile(r"(^|\.)self_attn\.qkv_proj\.weight$"), _stacked),
    "mpt": (re.compile(r"(^|\.)attn\.Wqkv\.weight$"), _stacked),
    "gpt_neox": (_QUERY_KEY_VALUE, _head_by_head),
    "gpt_neox_japanese": (_QUERY_KEY_VALUE, _head_by_head),
    "bloom": (_QUERY_KEY_VALUE, _head_by_head),
    "persimmon": (_QUERY_KEY_VALUE, _head_by_head),
    "falcon": (_QUERY_KEY_VALUE, _falcon),
    "gpt_bigcode": (re.compile(r"(^|\.)attn\.c_attn\.weight$"), _gpt_bigcode),
    "codegen": (re.compile(r"(^|\.)attn\.qkv_proj\.weight$"), _codegen),
}
# Models whose `gate_up_proj` has the gate's outputs above the others.
_GATED = ("phi3", "glm", "glm4")
# Models whose experts have them so too, and models where the gate's outputs are every other one.
_EXPERTS_HALVES = (
    *("mixtral", "qwen2_moe", "qwen3_moe", "qwen3_next", "qwen3_vl_moe_text", "qwen3_5_moe_text", "olmoe"),
    *("deepseek_v2", "deepseek_v3", "glm4_moe", "llama4_text"),
)
_EXPERTS_ALTERNATING = ("gpt_oss",)


def combined_matrix(name: str, shape: tuple[int, int], config: ModelConfig) -> Combined | None:
    """Return the layout of a combined matrix (out, in).

    None if the matrix is a single one, or if its sizes do not fit the known layouts.

    Parameters
    ----------
    name : str
    shape : tuple of int
        With the outputs first.
    config : ModelConfig

    Examples
    --------
    >>> from pathlib import Path
    >>> from lowrank_ldu.checkpoints.model_config import ModelConfig
    >>> combined_matrix("attn.qkv.weight", (12, 4), ModelConfig(Path("nowhere"))).sizes
    {'q': 4, 'k': 4, 'v': 4}
    """
    outputs, inputs = shape
    for section in config.sections:
        pattern, rule = _ATTENTIONS.get(section.model_type, (None, None))
        if pattern is not None and rule is not None and pattern.search(name):
            heads = _heads(section)
            combined = None if heads is None else rule(heads, section)
            if combined is not None and heads is not None and (outputs, inputs) == (combined.outputs, heads.inputs):
                return combined
            if rule is not _stacked:
                return None
        if section.model_type in _GATED and _GATE_UP.search(name):
            half = section.integer("intermediate_size")
            fits = half is not None and shape == (2 * half, section.integer("hidden_size"))
            return Combined(1, {"gate": half, "up": half}) if half is not None and fits else None
    if _QKV.search(name) and outputs == 3 * inputs and inputs:
        return Combined(1, dict.fromkeys("qkv", inputs))
    return None


def combined_expert(name: str, shape: tuple[int, int], config: ModelConfig) -> Combined | None:
    """Return the layout of each combined matrix of experts.

    None if each matrix of the stack is a single one, or if not all is known.

    Parameters
    ----------
    name : str
        Of the stack.
    shape : tuple of int
        Of one expert, as stored.
    config : ModelConfig
    """
    if not _EXPERTS_GATE_UP.search(name):
        return None
    for section in config.sections:
        halves = section.model_type in _EXPERTS_HALVES
        sizes = _expert_sizes(section)
        if sizes is None or not (halves or section.model_type in _EXPERTS_ALTERNATING):
            continue
        half, inputs = sizes
        # If both sides have one size, nothing tells which are the outputs.
        if sorted(shape) == sorted((2 * half, inputs)) and 2 * half != inputs:
            axis = shape.index(2 * half)
            return (
                Combined(1, {"gate": half, "up": half}, axis) if halves else Combined(half, {"gate": 1, "up": 1}, axis)
            )
    return None


def is_turned_expert(name: str, shape: tuple[int, int], config: ModelConfig) -> bool:
    """Return whether experts' last layers are stored as (in, out).

    The answer holds for each matrix of the stack, and is True only where this is known.
    """
    if not _EXPERTS_DOWN.search(name):
        return False
    known = (*_EXPERTS_HALVES, *_EXPERTS_ALTERNATING)
    sizes = [_expert_sizes(section) for section in config.sections if section.model_type in known]
    return any(size == shape and size[0] != size[1] for size in sizes)


def _expert_sizes(section: Section) -> tuple[int, int] | None:
    """Return an expert's inner size and its outer size.

    The outer size is that of its inputs and its outputs.
    """
    inside, outside = section.integer("moe_intermediate_size", "intermediate_size"), section.integer("hidden_size")
    return None if inside is None or outside is None else (inside, outside)
