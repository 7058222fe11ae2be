"""transformers' Trainer, unchanged: real text is learned, and a new process predicts the same."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from fits_of_bert import form, save_fits
from half_precision import assert_as_near
from peft import get_peft_model
from plugin_models import layers, logits, minilm, tiny_bert, tokens
from trainer_task import TOPICS, Sentences, predictions, sentences
from transformers import Trainer, TrainingArguments

from lowrank_ldu.peft import LolduConfig


def arguments(folder, **options):
    quiet = {"report_to": "none", "disable_tqdm": True, "use_cpu": True, "logging_strategy": "no"}
    return TrainingArguments(str(folder), **({"save_strategy": "no", "dataloader_pin_memory": False} | quiet | options))


@pytest.mark.longer
def test_real_text_is_learned_and_a_new_process_predicts_the_same(tmp_path):
    pairs = sentences()
    train, held_out = Sentences(pairs[200:]), Sentences(pairs[:200])
    config = LolduConfig(
        r=64, parametrization="normalized", modules_to_save=["classifier"], task_type="SEQ_CLS", pivoting="complete"
    )
    model = get_peft_model(minilm(labels=len(TOPICS)), config)
    options = {"learning_rate": 2e-2, "num_train_epochs": 2, "per_device_train_batch_size": 8, "seed": 0}
    Trainer(model, arguments(tmp_path, **options), train_dataset=train).train()
    predicted = predictions(model, held_out)
    labels = torch.tensor(held_out.labels)
    accuracy = (predicted.argmax(1) == labels).float().mean()
    assert accuracy > labels.bincount().max() / len(labels) + 0.15
    # Not by the head alone.
    assert all(layer.adapter("default").offset.any() for layer in layers(model))
    model.save_pretrained(tmp_path / "adapter")
    here = Path(__file__).parent
    command = [sys.executable, here / "trainer_task.py", tmp_path / "adapter", tmp_path / "predictions.pt"]
    path = os.pathsep.join([str(here.parent / "tools"), *filter(None, [os.environ.get("PYTHONPATH")])])
    subprocess.run(command, check=True, cwd=tmp_path, env={**os.environ, "PYTHONPATH": path})
    assert torch.equal(torch.load(tmp_path / "predictions.pt"), predicted)


class Numbers(torch.utils.data.Dataset):
    def __len__(self):
        return 16

    def __getitem__(self, index):
        return {"input_ids": tokens(16)[index], "labels": index % 2}


@pytest.mark.parametrize("name", [None, "chosen", "fitted"])
def test_resuming_from_a_checkpoint_ends_where_an_uninterrupted_run_ends(tmp_path, name):
    if name is not None:
        save_fits(tmp_path)
    form_options = {"r": 8} if name is None else form(name, tmp_path)

    def run(folder, dtype=torch.float32, **resume):
        model = get_peft_model(tiny_bert(dtype), LolduConfig(**form_options, task_type="SEQ_CLS")).to(dtype)
        options = {"max_steps": 8, "save_steps": 4, "save_strategy": "steps", "learning_rate": 0.05}
        training = arguments(folder, per_device_train_batch_size=4, **options)
        Trainer(model, training, train_dataset=Numbers()).train(**resume)
        return logits(model.eval())

    whole = run(tmp_path)
    resumed = run(tmp_path / "again", resume_from_checkpoint=str(tmp_path / "checkpoint-4"))
    # Rounding is carried through eight steps: as far as it takes an uninterrupted run from one in float64.
    exact = run(tmp_path / "exact", torch.float64)
    assert_as_near(resumed, exact, whole, exact)
    assert not torch.equal(whole, logits(tiny_bert()))
