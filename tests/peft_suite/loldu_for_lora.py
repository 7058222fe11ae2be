"""What PEFT's tests do with LoRA, done with LoLDU: the one rule that makes them ours."""

from dataclasses import MISSING, fields

from peft import LoraConfig

from lowrank_ldu.peft import LolduConfig

# PEFT's models are tiny: some layers are 2 wide, and what is called conv1d is 1 wide.
RANK, RANKS = 2, {"conv1d": 1}
_USUAL_RANK = 8

_RENAMED = {"lora_alpha": "alpha", "init_lora_weights": "init_weights"}
# Without a counterpart, and without a say in what the tests look at.
_DROPPED = {"lora_dropout", "peft_type", "use_rslora"}
_LORA = {field.name: field for field in fields(LoraConfig)}
_LOLDU = {field.name for field in fields(LolduConfig)}


class NoCounterpartError(TypeError):
    """LoLDU does not have an option of LoRA's."""


def options_as_loldu(options):
    """Return LoRA's options as LoLDU's, with ranks that fit."""
    renamed = {
        _RENAMED.get(name, name): value
        for name, value in options.items()
        if name in _LOLDU - _DROPPED
        or name in _RENAMED
        or (name not in _DROPPED and value != _default(_LORA.get(name)))
    }
    unknown = sorted(renamed.keys() - _LOLDU)
    if unknown:
        raise NoCounterpartError(f"LoLDU has no {', '.join(unknown)}")
    if isinstance(renamed.get("init_weights"), str):
        raise NoCounterpartError(f"LoLDU has no initialization {renamed['init_weights']}")
    renamed["r"] = _rank(options.get("r", _USUAL_RANK))
    renamed["rank_pattern"] = {name: _rank(rank) for name, rank in options.get("rank_pattern", {}).items()} or RANKS
    if str(renamed.get("bias")).endswith("_only"):
        renamed["bias"] = "loldu_only"
    return renamed


class Loldu(LolduConfig):
    """LoLDU's configuration in LoRA's spelling: PEFT's tests take it for LoRA's."""

    target_parameters = None
    on_other_bases = "error"

    def __init__(self, **options):
        super().__init__(**{"base_check": self.on_other_bases, **options_as_loldu(options)})


def rows_as_loldu(rows):
    """Return the rows of a parametrization that are LoRA's as LoLDU's, and those of no method.

    Rows of other methods, and of options that LoLDU does not have, are left out.
    """
    return [ours for row in rows if (ours := _row(row)) is not None]


def _row(row):
    row = getattr(row, "values", row) if hasattr(row, "marks") else row  # pytest.param
    single = not isinstance(row, list | tuple)
    values = [row] if single else list(row)
    if "MHA" in values:  # nn.MultiheadAttention is not among the layers that LoLDU takes
        return None
    try:
        ours = [_value(value) for value in values]
        if Loldu in ours:
            for value in ours:
                if isinstance(value, dict):
                    options_as_loldu(value)
    except NoCounterpartError:
        return None
    return ours[0] if single else tuple(ours)


def _value(value):
    if isinstance(value, str) and value == "lora":  # tells a test how to combine adapters
        return "loldu"
    if value is LoraConfig:
        return Loldu
    if type(value) is LoraConfig:
        return Loldu(**{field.name: getattr(value, field.name) for field in fields(value) if _is_given(field, value)})
    cls = value if isinstance(value, type) else type(value)
    if cls.__module__.startswith("peft.") and cls.__name__.endswith("Config"):
        raise NoCounterpartError(f"{cls.__name__} is another method")
    return value


def _is_given(field, config):
    return getattr(config, field.name) != _default(field)


def _default(field):
    if field is None:
        return MISSING
    return field.default if field.default_factory is MISSING else field.default_factory()


def _rank(rank):
    """Return RANK for PEFT's usual rank, another one for any other: they have to differ where PEFT's do."""
    return rank if rank <= RANK else RANK if rank == _USUAL_RANK else RANK - 1
