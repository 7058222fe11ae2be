"""FSDP2 trains what one process trains, and what it cannot shard is refused by name."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from peft import PeftModel
from safetensors.torch import load_file
from sharded_runs import RUNS, STOPPED, folder_of, train
from tiny_models import MODELS, OPTIONS, request_of
from tiny_text_models import data_set, offline, save_model
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from lowrank_ldu.errors import OptionError
from lowrank_ldu.finetuning.methods import get_method
from lowrank_ldu.finetuning.run_directory import RunDirectory
from lowrank_ldu.finetuning.sharding import any_process, check_launcher, check_shardable, check_sharding, layer_classes
from lowrank_ldu.finetuning.sharding import whole as whole_parameters
from lowrank_ldu.finetuning.training_options import refuse_reserved

FSDP2 = {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2", "FSDP_AUTO_WRAP_POLICY": "TRANSFORMER_BASED_WRAP"}
_offline = pytest.fixture(autouse=True, scope="module")(offline)


def log_of(run):
    entries = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    return [{name: value for name, value in entry.items() if name != "seconds"} for entry in entries]


def adapter_of(run):
    return load_file(run / "adapter" / "adapter_model.safetensors")


def in_two_processes(folder):
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
    common = {
        **os.environ,
        **FSDP2,
        "PYTHONPATH": os.pathsep.join(sys.path),
        "HF_HUB_OFFLINE": "1",
        "ACCELERATE_USE_CPU": "true",
        "GLOO_SOCKET_IFNAME": "lo",
        "OMP_NUM_THREADS": "1",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "WORLD_SIZE": "2",
        "LOCAL_WORLD_SIZE": "2",
    }
    started = [
        subprocess.Popen(
            [sys.executable, Path(__file__).with_name("sharded_runs.py"), folder],
            env={**common, "RANK": rank, "LOCAL_RANK": rank},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in "01"
    ]
    try:
        told = [process.communicate(timeout=600)[0] for process in started]
    finally:
        for process in started:
            process.kill()
    assert [process.returncode for process in started] == [0, 0], "\n".join(told)


@pytest.mark.longer
@pytest.mark.skipif(not torch.distributed.is_available(), reason="this torch has no process groups")
def test_two_processes_that_shard_train_what_one_does_and_go_on_bit_for_bit(tmp_path):
    save_model(tmp_path / "model", hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
    data_set().save_to_disk(tmp_path / "data")
    in_two_processes(tmp_path)
    for method in RUNS:
        train(tmp_path, f"one-{method}", method, {"per_device_train_batch_size": 8})
        sharded, one = folder_of(tmp_path, method), folder_of(tmp_path, f"one-{method}")
        for entry, reference in zip(log_of(sharded), log_of(one), strict=True):
            assert entry == pytest.approx(reference, rel=1e-4, abs=1e-5)
        first, second = adapter_of(sharded), adapter_of(one)
        assert first.keys() == second.keys()
        for name, value in first.items():
            torch.testing.assert_close(value, second[name], rtol=1e-4, atol=1e-5)
        # All that whoever loads it gets are the files. A run evaluates rows in the order of their lengths.
        predictions = torch.from_numpy(RunDirectory(sharded).predictions("validation")[0])
        loaded = logits_of(tmp_path, sharded)
        torch.testing.assert_close(loaded.sort(dim=0).values, predictions.sort(dim=0).values, rtol=1e-4, atol=1e-5)
        for step in STOPPED:
            again = folder_of(tmp_path, f"{method}-{step}")
            assert json.loads((again / "manifest.json").read_bytes())["starts"][-1]["from_step"] == step
            assert log_of(again) == log_of(sharded)
            assert adapter_of(again).keys() == first.keys()
            assert all(torch.equal(value, first[name]) for name, value in adapter_of(again).items())
    # Nothing of the base is in a checkpoint.
    kept = load_file(folder_of(tmp_path, "loldu") / "checkpoints" / "checkpoint-8" / "trained.safetensors")
    assert sum(value.numel() for value in kept.values()) == 2 * 2 * (3 + 1) + 16 * 16 + 16 + 2 * 16 + 2
    assert not list((folder_of(tmp_path, "loldu") / "checkpoints" / "checkpoint-8").glob("pytorch_model*"))


def logits_of(folder, run):
    """Load an adapter by PEFT alone, and return what it says of the validation rows."""
    base = AutoModelForSequenceClassification.from_pretrained(folder / "model", num_labels=2)
    model = PeftModel.from_pretrained(base, run / "adapter").eval()
    texts = list(data_set()["validation"]["sentence"])
    with torch.no_grad():
        return model(**AutoTokenizer.from_pretrained(folder / "model")(texts, padding=True, return_tensors="pt")).logits


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"ACCELERATE_USE_DEEPSPEED": "true"}, "asks for DeepSpeed; accepted: data parallel processes"),
        ({"ACCELERATE_USE_MEGATRON_LM": "true"}, "asks for Megatron-LM; accepted"),
        ({**FSDP2, "ACCELERATE_USE_PARALLELISM_CONFIG": "true"}, "asks for a parallelism_config; accepted"),
        ({**FSDP2, "FSDP_VERSION": "1"}, r"asks for FSDP 1, .* accepted: FSDP2 \(--fsdp_version 2\)"),
        ({"ACCELERATE_USE_FSDP": "true"}, "asks for FSDP 1"),
        ({**FSDP2, "FSDP_AUTO_WRAP_POLICY": "SIZE_BASED_WRAP"}, "accepted: TRANSFORMER_BASED_WRAP, NO_WRAP"),
        ({**FSDP2, "ACCELERATE_DYNAMO_BACKEND": "INDUCTOR"}, "dynamo_backend is INDUCTOR, .* accepted: no"),
        ({**FSDP2, "FSDP_ACTIVATION_CHECKPOINTING": "true"}, "accepted: --set gradient_checkpointing=true"),
    ],
)
def test_other_ways_of_dividing_a_model_are_refused(given, message, monkeypatch):
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(OptionError, match=message):
        check_launcher()


def test_models_are_loaded_by_every_process(monkeypatch):
    assert not check_launcher()
    for name, value in {**FSDP2, "FSDP_CPU_RAM_EFFICIENT_LOADING": "true"}.items():
        monkeypatch.setenv(name, value)
    assert check_launcher()
    assert os.environ["FSDP_CPU_RAM_EFFICIENT_LOADING"].lower() == "false"


def test_accelerate_leaves_fsdp_out_on_cpus(monkeypatch):
    for name, value in FSDP2.items():
        monkeypatch.setenv(name, value)
    AcceleratorState._reset_state(reset_partial_state=True)
    try:
        accelerator = Accelerator(cpu=True)
        with pytest.raises(OptionError, match=r"does not shard on cpu \(NO\); accepted: several processes on GPUs"):
            check_sharding(accelerator)
    finally:
        AcceleratorState._reset_state(reset_partial_state=True)


@pytest.mark.parametrize("name", ["fsdp", "fsdp_config", "deepspeed"])
def test_the_launcher_says_that_a_model_is_sharded(name):
    with pytest.raises(OptionError, match="accelerate launch --use_fsdp --fsdp_version 2"):
        refuse_reserved({name: True})


def prepared(method, kind="bert"):
    return get_method(method).prepare(MODELS[kind](), OPTIONS.get(method, {}), request_of(kind))


@pytest.mark.parametrize(
    ("method", "message"),
    [
        ("adalora", "AdaLoRA ranks all its singular values after each step"),
        ("vblora", "vblora_vector_bank.default' and .* are one trained parameter; accepted: data parallel processes"),
        ("loldu", None),
        ("full", None),
    ],
)
def test_methods_that_cannot_be_sharded_say_why(method, message):
    if message is None:
        check_shardable(prepared(method), None, compiled=False)
    else:
        with pytest.raises(OptionError, match=message):
            check_shardable(prepared(method), None, compiled=False)


def test_tasks_and_compilers_that_do_not_go_with_it_say_why():
    with pytest.raises(OptionError, match="cannot shard this run: images are generated by one process; accepted"):
        check_shardable(prepared("lora"), "images are generated by one process", compiled=False)
    with pytest.raises(OptionError, match="torch_compile is true"):
        check_shardable(prepared("lora"), None, compiled=True)


def test_embeddings_are_no_layers_to_shard():
    model = prepared("loldu").model
    assert "BertEmbeddings" in model._no_split_modules
    assert layer_classes(model, None) == layer_classes(model, ["BertLayer"]) == ["BertLayer"]
    for name, reason in (("BertEmbeddings", "holds the embeddings"), ("LlamaDecoderLayer", "is no class of a module")):
        with pytest.raises(OptionError, match=rf"has '{name}', which {reason}.*; accepted: BertLayer"):
            layer_classes(model, [name])


def test_what_is_not_sharded_stays_as_it_is():
    found = prepared("lora")
    before = dict(found.model.named_parameters())
    with whole_parameters(found, written=True):
        assert all(value is before[name] for name, value in found.model.named_parameters())
    assert any_process([True, False], [*before.values()][:2]) == [True, False]
