"""PEFT's tests of torch.compile, on random tokens instead of its text from the hub."""

import os

import pytest
import torch

os.environ["PEFT_DEBUG_WITH_TORCH_COMPILE"] = "1"  # PEFT's module skips itself without

from loldu_for_lora import Loldu
from sdist import load, module
from transformers import AutoModelForCausalLM

_Suite = load("test_torch_compile", ["TestTorchCompileCausalLM"])["TestTorchCompileCausalLM"]
# aot_eager traces and differentiates as inductor does, without its minutes of compiling kernels.
_BACKEND = {"backend": "aot_eager"}
_SETTINGS = {
    "loldu": (Loldu(task_type="CAUSAL_LM"), _BACKEND),
    "dense": (Loldu(task_type="CAUSAL_LM", core="dense", parametrization="gram"), _BACKEND),
    "embeddings": (Loldu(task_type="CAUSAL_LM", target_modules=["embed_tokens"]), _BACKEND),
    "modules-to-save": (Loldu(task_type="CAUSAL_LM", modules_to_save=["embed_tokens"]), _BACKEND),
}


class _Rows(dict):
    def __getitem__(self, key):
        return (
            {name: values[key] for name, values in self.items()} if isinstance(key, slice) else super().__getitem__(key)
        )


class _Tokenizer:
    def pad(self, rows, return_tensors):
        del return_tensors
        return _Batch({name: torch.tensor(values) for name, values in rows.items()})


class _Batch(dict):
    def to(self, device):
        return _Batch({name: value.to(device) for name, value in self.items()})


class _Unquantized:
    @staticmethod
    def from_pretrained(name, **options):
        del options
        return AutoModelForCausalLM.from_pretrained(name)


class TestCompile(_Suite):
    @pytest.fixture(scope="class")
    def tokenizer(self):
        return _Tokenizer()

    @pytest.fixture(scope="class")
    def data(self):
        tokens = torch.randint(4, 64, (40, 12), generator=torch.Generator().manual_seed(0))
        return {"train": _Rows(input_ids=tokens.tolist(), attention_mask=torch.ones_like(tokens).tolist())}

    @pytest.mark.parametrize("settings", _SETTINGS.values(), ids=_SETTINGS.keys())
    def test_causal_lm_training_pytorch_compile(self, settings, tokenizer, data, tmp_path):
        super().test_causal_lm_training_pytorch_compile(settings, tokenizer, data, tmp_path)

    @pytest.fixture(autouse=True)
    def _quickly(self, monkeypatch):
        # The tests that name LoRA load 4-bit weights, which the stand-ins are too narrow for.
        monkeypatch.setattr(module("test_torch_compile"), "AutoModelForCausalLM", _Unquantized)
        plain = torch.compile
        monkeypatch.setattr(torch, "compile", lambda model, **options: plain(model, **{**_BACKEND, **options}))


del _Suite
