"""List the fine-tuning methods."""

from __future__ import annotations

import difflib
from typing import TYPE_CHECKING

from lowrank_ldu.errors import OptionError
from lowrank_ldu.finetuning.methods.from_peft import LoldU, Lora
from lowrank_ldu.finetuning.methods.method import Method, MethodRequest, Prepared

if TYPE_CHECKING:
    from collections.abc import Mapping

METHODS: Mapping[str, Method] = {each.name: each for each in (Lora(), LoldU())}

__all__ = ["METHODS", "Method", "MethodRequest", "Prepared", "get_method"]


def get_method(name: str) -> Method:
    """Return a method by its name."""
    if name not in METHODS:
        near = difflib.get_close_matches(name, METHODS, n=3) or list(METHODS)
        raise OptionError(f"method is {name!r}; accepted: {', '.join(near)}")
    return METHODS[name]
