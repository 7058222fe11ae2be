"""A training step of all-MiniLM-L6-v2, by the entries that the sentiment recipe compares.

pytest benchmarks/test_training_step.py -k turns -s
pytest benchmarks/test_training_step.py -k pairs --benchmark-columns=median,iqr,rounds

The first measures all methods in turns, so that a neighbor on the machine meets all of them, and prints ratios of
medians to LoRA with r = 8. A step is forward, backward and AdamW's, of 32 texts of 32 tokens in single precision.
"""

import sys
import time
from dataclasses import replace
from pathlib import Path
from statistics import median

import pytest
import torch
from transformers import AutoModelForSequenceClassification

from lowrank_ldu.finetuning import Choice, MethodRequest, get_method, load_recipe, plan_comparison, select_entries

sys.path.append(str(Path(__file__).resolve().parents[1] / "tests" / "tools"))
from minilm import folder  # the tests' own, which verifies the checksum

TEXTS, TOKENS, ROUNDS = 32, 32, 15
REFERENCE = "lora-8"
NAMES = [
    REFERENCE, "lora-1-qv", "head", "full", "loldu-384", "gram-384", "loldu-96", "core-20", "pivots-20", "pivots-10",
    "basis-384", "basis-256", "basis-100", "basis-25", "basis-32-scaled",
]  # fmt: skip
# The reference on the modules of other entries, for ratios at the same places.
ELSEWHERE = {
    "lora-8, v o MLP": ["value", "intermediate.dense", "output.dense"],
    "lora-8, all": ["query", "key", "value", "intermediate.dense", "output.dense"],
}


class Step:
    """A model that a method prepared, and a step of its training."""

    def __init__(self, config, device):
        generator = torch.Generator().manual_seed(0)
        torch.manual_seed(0)
        model = AutoModelForSequenceClassification.from_pretrained(folder(), num_labels=2, dtype=torch.float32)
        self.batch = {
            "input_ids": torch.randint(1000, 20000, (TEXTS, TOKENS), generator=generator).to(device),
            "attention_mask": torch.ones(TEXTS, TOKENS, dtype=torch.long, device=device),
            "labels": torch.randint(0, 2, (TEXTS,), generator=generator).to(device),
        }
        targets = [] if config.target_modules is None else config.target_modules
        request = MethodRequest(targets, ["classifier"], 0, [self.batch] * 16, task_type="SEQ_CLS")
        self.prepared = get_method(config.method).prepare(model.to(device), config.method_options, request)
        self.prepared.model.train()
        rate = config.training["learning_rate"]
        self.optimizer = torch.optim.AdamW(self.prepared.parameter_groups(rate, head_lr=rate, weight_decay=0.0))

    def __call__(self):
        self.optimizer.zero_grad()
        self.prepared.model(**self.batch).loss.backward()
        self.optimizer.step()
        if self.batch["labels"].is_cuda:
            torch.cuda.synchronize()


@pytest.fixture(scope="module")
def steps(request, tmp_path_factory):
    recipe = load_recipe("sentiment")
    selection = select_entries(recipe, NAMES)
    task, out = "movies-polarity", tmp_path_factory.mktemp("runs")
    plan = plan_comparison(recipe, out, selection, Choice(model=str(folder())), tasks=[task], trials=1)
    device = torch.device(request.config.getoption("--device"))
    configs = {
        entry.name: plan.run(task, entry, plan.settings[task, entry.name][0], seed=0).config
        for entry in selection.entries
    }
    configs |= {name: replace(configs[REFERENCE], target_modules=modules) for name, modules in ELSEWHERE.items()}
    return {name: Step(config, device) for name, config in configs.items()}


@pytest.mark.filterwarnings("ignore")  # of random texts: gradients of a low rank
def test_turns(steps):
    walls = {name: [] for name in steps}
    for turn in range(ROUNDS + 2):
        for name, step in steps.items():
            before = time.perf_counter()
            step()
            if turn > 1:  # the first two warm up
                walls[name].append(time.perf_counter() - before)
    reference = median(walls[REFERENCE])
    print(f"\n{TEXTS} texts of {TOKENS} tokens: {REFERENCE} {1e3 * reference:.0f} ms")
    for name, taken in walls.items():
        numbers = steps[name].prepared.trained_numbers
        print(f"  {name:16} {numbers:>10,} numbers {median(taken) / reference:6.3f}")


@pytest.mark.parametrize("name", [*NAMES, *ELSEWHERE])
@pytest.mark.filterwarnings("ignore")
def test_pairs(benchmark, steps, name):
    benchmark.group = f"a training step, {TEXTS} texts of {TOKENS} tokens"
    benchmark.pedantic(steps[name], rounds=ROUNDS, warmup_rounds=2)
