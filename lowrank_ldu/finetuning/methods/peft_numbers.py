"""Count what PEFT's methods train, from the sizes of layers.

Each function takes the layers, with weights (m, n), and the configuration, and follows the method's definition in
PEFT's documentation.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from lowrank_ldu.errors import OptionError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from lowrank_ldu.finetuning.methods.modules import AdaptedLayer

    Numbers = Callable[[Sequence[AdaptedLayer], Any], int]


def value_of(pattern: dict[str, Any] | None, name: str, default: Any) -> Any:
    """Return what a pattern of PEFT's says of a layer."""
    from peft.utils.other import get_pattern_key  # noqa: PLC0415  # peft may be absent

    keys = (pattern or {}).keys()
    return (pattern or {}).get(get_pattern_key(keys, name), default)


def lora(layers: Sequence[AdaptedLayer], config: Any) -> int:
    """Count A (r, n) and B (m, r), and B's bias if asked for."""
    ranks = [value_of(config.rank_pattern, layer.name, config.r) for layer in layers]
    numbers = sum(rank * (layer.rows + layer.columns) for rank, layer in zip(ranks, layers, strict=True))
    return int(numbers + (sum(layer.rows for layer in layers) if config.lora_bias else 0))


def dora(layers: Sequence[AdaptedLayer], config: Any) -> int:
    """Count LoRA's numbers and m magnitudes a layer."""
    return lora(layers, config) + sum(layer.rows for layer in layers)


def adalora(layers: Sequence[AdaptedLayer], config: Any) -> int:
    """Count P (m, r), Q (r, n) and r singular values, at the initial rank."""
    return sum(config.init_r * (layer.rows + layer.columns + 1) for layer in layers)


def vera(layers: Sequence[AdaptedLayer], config: Any) -> int:
    """Count two vectors a layer, of r and m numbers."""
    return sum(config.r + layer.rows for layer in layers)


def fourierft(layers: Sequence[AdaptedLayer], config: Any) -> int:
    """Count n_frequency coefficients a layer."""
    return sum(value_of(config.n_frequency_pattern, layer.name, config.n_frequency) for layer in layers)


def oft(layers: Sequence[AdaptedLayer], config: Any) -> int:
    """Count skew-symmetric blocks b x b on n inputs, b (b - 1) / 2 each.

    Raises
    ------
    OptionError
        The blocks do not divide the inputs of a layer. PEFT would take another size.
    """
    numbers = 0
    for layer in layers:
        name = "r" if config.oft_block_size == 0 else "oft_block_size"
        value = getattr(config, name)
        if layer.columns % value:
            raise OptionError(
                f"{name} is {value} and layer {layer.name!r} has {layer.columns} inputs; accepted: a divisor of them"
            )
        size = layer.columns // value if name == "r" else value
        blocks = 1 if config.block_share else layer.columns // size
        numbers += blocks * (size * (size - 1) // 2)
    return numbers


def ia3(layers: Sequence[AdaptedLayer], config: Any) -> int:
    """Count m scales of outputs a layer, or n of inputs of a feedforward one."""
    import re  # noqa: PLC0415

    modules = config.feedforward_modules

    def is_feedforward(name: str) -> bool:
        if isinstance(modules, str):
            return re.fullmatch(modules, name) is not None
        return any(name.endswith(each) for each in modules)

    return sum(layer.columns if is_feedforward(layer.name) else layer.rows for layer in layers)


def vblora(layers: Sequence[AdaptedLayer], config: Any) -> int:
    """Count a shared bank of vectors, and logits for each of their uses."""
    bank = config.num_vectors * config.vector_length
    parts = sum((layer.rows + layer.columns) // config.vector_length for layer in layers)
    return int(bank + config.r * parts * config.num_vectors)


def unilora(layers: Sequence[AdaptedLayer], config: Any) -> int:  # noqa: ARG001  # all layers share them
    """Count the one vector of the model."""
    return int(config.theta_d_length)


def psoft(layers: Sequence[AdaptedLayer], config: Any) -> int:
    """Count a matrix of rank r a layer, orthogonal or free, and its two scales."""
    matrix = config.r * (config.r - 1) // 2 if config.psoft_orth else config.r**2
    return int(len(layers) * (matrix + config.r * (config.psoft_mag_a + config.psoft_mag_b)))


def tinylora(layers: Sequence[AdaptedLayer], config: Any) -> int:
    """Count u numbers for each group of tied layers."""
    groups = max(1, round(len(layers) * (1.0 - config.weight_tying)))
    size = max(1, len(layers) // groups)
    return int(config.u * len({min(index // size, groups - 1) for index in range(len(layers))}))


def beft(layers: Sequence[AdaptedLayer], config: Any) -> int:  # noqa: ARG001
    """Count a bias of m numbers a layer."""
    return sum(layer.rows for layer in layers)
