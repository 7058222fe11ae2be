"""Adapt models by methods that share one interface.

Each method takes options, prepares a model for training, and keeps what was trained.
"""

from __future__ import annotations

import difflib
from types import MappingProxyType
from typing import TYPE_CHECKING

from lowrank_ldu.errors import OptionError
from lowrank_ldu.finetuning.methods.adalora import ADALORA
from lowrank_ldu.finetuning.methods.from_peft import PEFT_METHODS
from lowrank_ldu.finetuning.methods.ldu import LDU_METHODS
from lowrank_ldu.finetuning.methods.melora import MELORA
from lowrank_ldu.finetuning.methods.method import Method, MethodRequest, Prepared
from lowrank_ldu.finetuning.methods.whole import WHOLE_METHODS
from lowrank_ldu.validation import shown

if TYPE_CHECKING:
    from collections.abc import Mapping

METHODS: Mapping[str, Method] = MappingProxyType(
    {method.name: method for method in (*WHOLE_METHODS, *PEFT_METHODS, ADALORA, MELORA, *LDU_METHODS)}
)

__all__ = ["METHODS", "Method", "MethodRequest", "Prepared", "get_method"]


def get_method(name: str) -> Method:
    """Return the method of a name.

    Parameters
    ----------
    name : str
        As in `METHODS`. A method may be unavailable all the same: `Method.unavailable` says why.

    Raises
    ------
    OptionError
        There is no such method; the message names the nearest.

    Examples
    --------
    >>> get_method("lora").title
    'LoRA'
    >>> get_method("loraa")
    Traceback (most recent call last):
        ...
    lowrank_ldu.errors.OptionError: method is 'loraa'; accepted: lora, vblora, melora
    """
    if name not in METHODS:
        near = difflib.get_close_matches(str(name), METHODS, n=3) or METHODS
        raise OptionError(f"method is {shown(name)}; accepted: {', '.join(near)}")
    return METHODS[name]


def __dir__() -> list[str]:
    return __all__
