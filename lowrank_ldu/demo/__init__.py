"""Fine-tune a small vision transformer by several methods.

By LoLDU and the methods it is compared with (``finetune`` extra).

`compare_methods` is the entry; the other names are its parts and results.
"""

from __future__ import annotations

from lowrank_ldu.demo.comparison import (
    Comparison,
    ComparisonProgress,
    ComparisonSettings,
    MethodResult,
    Pretrained,
    compare_methods,
    fine_tune,
    pretrain,
)
from lowrank_ldu.demo.methods import (
    ChosenPivotsMethod,
    FittedBasisMethod,
    FullFineTuning,
    LinearProbe,
    LoLDUMethod,
    LoRAMethod,
    Method,
    PiSSAMethod,
    default_methods,
)
from lowrank_ldu.finetuning.digits.data import SHIFTS, DigitsSplit, Images, load_digits_split
from lowrank_ldu.finetuning.digits.network import VisionTransformerSettings, build_vision_transformer
from lowrank_ldu.finetuning.digits.prepared import PreparedModel
from lowrank_ldu.finetuning.digits.training import TrainingResult, TrainingSettings, accuracy, train

__all__ = [
    "SHIFTS",
    "ChosenPivotsMethod",
    "Comparison",
    "ComparisonProgress",
    "ComparisonSettings",
    "DigitsSplit",
    "FittedBasisMethod",
    "FullFineTuning",
    "Images",
    "LinearProbe",
    "LoLDUMethod",
    "LoRAMethod",
    "Method",
    "MethodResult",
    "PiSSAMethod",
    "PreparedModel",
    "Pretrained",
    "TrainingResult",
    "TrainingSettings",
    "VisionTransformerSettings",
    "accuracy",
    "build_vision_transformer",
    "compare_methods",
    "default_methods",
    "fine_tune",
    "load_digits_split",
    "pretrain",
    "train",
]


def __dir__() -> list[str]:
    return __all__
