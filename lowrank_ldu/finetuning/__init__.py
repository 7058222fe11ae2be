"""Fine-tune models on tasks, by one of many methods.

The methods are behind one interface: LoLDU in every form, those of PEFT, and whole or partial fine-tuning.
"""

from lowrank_ldu.finetuning.methods import METHODS, Method, MethodRequest, Prepared, get_method

__all__ = ["METHODS", "Method", "MethodRequest", "Prepared", "get_method"]


def __dir__() -> list[str]:
    return __all__
