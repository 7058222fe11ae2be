"""What a user of PEFT waits for: making the adapters, and a batch whose rows use different ones.

pytest benchmarks/test_peft.py --benchmark-group-by=group --benchmark-columns=median,iqr,rounds -s
"""

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import copy
import warnings

import pytest
import torch
from minilm import folder
from peft import LoraConfig, get_peft_model, get_peft_model_state_dict
from safetensors.torch import save
from transformers import AutoModel

from lowrank_ldu.peft import LolduConfig

RANK, ADAPTERS = 64, 100
pytestmark = pytest.mark.filterwarnings("ignore")  # what PEFT and transformers have to say is not measured


@pytest.fixture(scope="module")
def base():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return AutoModel.from_pretrained(folder())


class TestInitialization:
    """`get_peft_model` on all-MiniLM-L6-v2, every linear layer, r = 64."""

    def run(self, benchmark, base, config):
        benchmark.group = f"get_peft_model, all-MiniLM-L6-v2, all linear layers, r = {RANK}"
        benchmark.pedantic(
            get_peft_model, setup=lambda: ((copy.deepcopy(base), config()), {}), rounds=15, warmup_rounds=2
        )

    def test_loldu(self, benchmark, base):
        self.run(benchmark, base, lambda: LolduConfig(r=RANK, target_modules="all-linear"))

    def test_pissa_niter_4(self, benchmark, base):
        self.run(
            benchmark,
            base,
            lambda: LoraConfig(r=RANK, target_modules="all-linear", init_lora_weights="pissa_niter_4"),
        )

    def test_lora(self, benchmark, base):
        self.run(benchmark, base, lambda: LoraConfig(r=RANK, target_modules="all-linear"))


@pytest.fixture(scope="module")
def adapted(base):
    def config():
        return LolduConfig(r=RANK, target_modules="all-linear", init_weights=False)

    model = get_peft_model(copy.deepcopy(base), config())
    for index in range(1, ADAPTERS):
        model.add_adapter(f"adapter {index}", config())
    return model.eval()


NAMES = ["default", *(f"adapter {index}" for index in range(1, ADAPTERS))]


@pytest.mark.parametrize("length", [16, 64])
class TestMixedBatch:
    """100 rows, each with an adapter of its own, beside the same rows with one."""

    def run(self, benchmark, model, length, **options):
        benchmark.group = f"{ADAPTERS} rows of {length} tokens, all-MiniLM-L6-v2, r = {RANK}"
        tokens = torch.randint(0, 30000, (ADAPTERS, length))
        with torch.no_grad():
            benchmark.pedantic(model, args=(tokens,), kwargs=options, rounds=9, warmup_rounds=2)

    def test_one_adapter(self, benchmark, adapted, length):
        self.run(benchmark, adapted, length)

    def test_an_adapter_for_each_row(self, benchmark, adapted, length):
        self.run(benchmark, adapted, length, adapter_names=NAMES)


def test_size_of_an_adapter():
    """Not a time: the bytes of an adapter file for query and value of 12 layers of width 768, at rank 768."""

    class Block(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.query, self.value = torch.nn.Linear(768, 768), torch.nn.Linear(768, 768)

    def size(config):
        model = get_peft_model(torch.nn.Sequential(*(Block() for _ in range(12))), config)
        return len(save(get_peft_model_state_dict(model)))

    ours = size(LolduConfig(r=768, target_modules=["query", "value"]))
    lora = size(LoraConfig(r=8, target_modules=["query", "value"]))
    print(f"\nLoLDU r = 768: {ours / 1e3:.0f} kB; LoRA r = 8: {lora / 1e3:.0f} kB")
