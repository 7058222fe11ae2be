"""Register a method with PEFT that is not its own.

There is no supported way. PEFT checks a method's name against the members of an enumeration, and transformers asks
those members for their value; so the enumeration gets one more.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from aenum import extend_enum
from peft.utils import PeftType, register_peft_method

if TYPE_CHECKING:
    from peft import PeftConfig
    from peft.tuners.tuners_utils import BaseTuner

NAME = "loldu"
# Names of all tensors that are trained, saved or deleted with an adapter have this prefix, by which PEFT finds them.
PREFIX = f"{NAME}_"


def add_peft_type() -> None:
    """Add LOLDU to PEFT's types, once."""
    if NAME.upper() not in PeftType.__members__:
        extend_enum(PeftType, NAME.upper(), NAME.upper())


def register(config: type[PeftConfig], model: type[BaseTuner]) -> None:
    """Register the method with PEFT, once."""
    from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING  # noqa: PLC0415

    if PeftType.LOLDU not in PEFT_TYPE_TO_CONFIG_MAPPING:
        register_peft_method(name=NAME, config_cls=config, model_cls=model, prefix=PREFIX)
