"""Hold the digits of scikit-learn, and a small vision transformer that knows them upright.

Nothing is downloaded. `pretrained_digits_vit` is the base model of the recipe ``digits``, `digits_splits` are its data.
"""

from __future__ import annotations

from lowrank_ldu.finetuning.digits.base import MODEL, pretrained_digits_vit
from lowrank_ldu.finetuning.digits.data import DEFAULT_SHIFT, SHIFTS
from lowrank_ldu.finetuning.digits.network import build_vision_transformer
from lowrank_ldu.finetuning.digits.rows import digits_splits

__all__ = ["DEFAULT_SHIFT", "MODEL", "SHIFTS", "build_vision_transformer", "digits_splits", "pretrained_digits_vit"]


def __dir__() -> list[str]:
    return __all__
