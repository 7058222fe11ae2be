"""Prepare methods through PEFT's own classes."""

from __future__ import annotations

import difflib
from typing import TYPE_CHECKING, Any, ClassVar

from lowrank_ldu.errors import OptionError
from lowrank_ldu.finetuning.methods.method import Method, MethodRequest, Prepared

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import nn


class _FromPeft(Method):
    defaults: ClassVar[Mapping[str, Any]]

    def options(self, given: Mapping[str, Any]) -> dict[str, Any]:
        for name in given:
            if name not in self.defaults:
                near = difflib.get_close_matches(name, self.defaults, n=3) or list(self.defaults)
                raise OptionError(f"{name} is no option of {self.name}; accepted: {', '.join(near)}")
        return {**self.defaults, **given}

    def _config(self, **options: Any) -> Any:
        raise NotImplementedError

    def prepare(self, model: nn.Module, options: Mapping[str, Any], request: MethodRequest) -> Prepared:
        from peft import get_peft_model  # noqa: PLC0415

        targets = request.targets if isinstance(request.targets, str) else list(request.targets)
        config = self._config(
            **options, target_modules=targets, modules_to_save=list(request.trained_whole), task_type=request.task_type
        )
        peft_model = get_peft_model(model, config)
        numbers = sum(
            p.numel() for n, p in peft_model.named_parameters() if p.requires_grad and "modules_to_save" not in n
        )
        return Prepared(peft_model, numbers)


class Lora(_FromPeft):
    """LoRA."""

    name, title = "lora", "LoRA"
    defaults: ClassVar[Mapping[str, Any]] = {"r": 8, "lora_alpha": 8, "lora_dropout": 0.0}

    def _config(self, **options: Any) -> Any:
        from peft import LoraConfig  # noqa: PLC0415

        return LoraConfig(**options)


class LoldU(_FromPeft):
    """LoLDU."""

    name, title = "loldu", "LoLDU"
    defaults: ClassVar[Mapping[str, Any]] = {
        "r": 64,
        "alpha": None,
        "init": "regular_ldu",
        "pivoting": "partial",
        "clip_rank": False,
    }

    def _config(self, **options: Any) -> Any:
        from lowrank_ldu.peft import LolduConfig  # noqa: PLC0415

        return LolduConfig(**options)
