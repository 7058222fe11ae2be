"""Train what FSDP2 shards over two processes of a CPU; run as a script, once for each."""

import os
import shutil
import sys
from pathlib import Path

import torch
from accelerate import PartialState
from accelerate.state import AcceleratorState
from accelerate.utils import DistributedType
from tiny_models import OPTIONS, batches_of, bert, request_of
from torch import distributed
from torch.distributed.fsdp import fully_shard
from transformers.models.bert.modeling_bert import BertLayer

from lowrank_ldu.finetuning import Choice, load_recipe, run_recipe
from lowrank_ldu.finetuning.methods import METHODS
from lowrank_ldu.finetuning.sharding import whole
from lowrank_ldu.finetuning.trained import load_trained, refuse_unconnected, save_trained, without_gradient

# A rank that two processes cannot halve. The launcher's default is a full state dict, accelerate's a sharded one.
RUNS = {
    "loldu": ("SHARDED_STATE_DICT", {"per_device_train_batch_size": 4}),
    "lora": ("FULL_STATE_DICT", {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 2}),
}
SETTINGS = {
    "r": 3,
    "max_length": 16,
    "max_steps": 8,
    "save_steps": 3,
    "save_total_limit": 3,
    "logging_steps": 1,
    "learning_rate": 1e-2,
}
# After the third step, and when all steps are done.
STOPPED = (3, 8)


def train(folder, out, method, settings):
    """Train a run in the folder `out`; `folder` holds the model and the data."""
    choice = Choice(
        model=str(folder / "model"), data=str(folder / "data"), method=method, settings={**SETTINGS, **settings}
    )
    run_recipe(load_recipe("glue"), folder / out, choice, tasks=["sst2"], seeds=[0])


def folder_of(folder, out):
    return folder / out / "sst2" / "seed-0"


def stop(folder, out, step):
    """Leave of a finished run what one has left that was stopped after a step."""
    run = folder_of(folder, f"{out}-{step}")
    shutil.copytree(folder_of(folder, out), run)
    (run / "metrics.json").unlink()
    for name in ("adapter", "predictions"):
        shutil.rmtree(run / name)
    for checkpoint in (run / "checkpoints").iterdir():
        if int(checkpoint.name.removeprefix("checkpoint-")) > step:
            shutil.rmtree(checkpoint)


def shard_on_cpus():
    """Have accelerate shard on CPUs, which torch can and accelerate leaves out."""
    make = AcceleratorState.__init__

    def init(state, *given, fsdp_plugin=None, **named):
        make(state, *given, fsdp_plugin=fsdp_plugin, **named)
        if fsdp_plugin is not None:
            assert state.distributed_type in {DistributedType.MULTI_CPU, DistributedType.FSDP}
            state.distributed_type, state.fsdp_plugin = DistributedType.FSDP, fsdp_plugin
            # As its own branch for FSDP does, or the next one to ask is told of DDP.
            PartialState._shared_state["distributed_type"] = DistributedType.FSDP

    AcceleratorState.__init__ = init


def loss_of(found, batch):
    return found.model(**batch).loss


def check_methods(folder):
    """Every method that is not refused takes the steps that it takes unsharded, and is saved and loaded."""
    rank, refused = distributed.get_rank(), set()
    for name, method in METHODS.items():
        one, found = (method.prepare(bert(), OPTIONS.get(name, {}), request_of("bert")) for _ in range(2))
        if found.obstacle_to_sharding() is not None:
            refused.add(name)
            continue
        for module in list(found.model.modules()):
            if isinstance(module, BertLayer):
                fully_shard(module)
        fully_shard(found.model)
        optimizers = [
            torch.optim.AdamW(each.parameter_groups(1e-2, head_lr=None, weight_decay=0.1)) for each in (one, found)
        ]
        for batch in batches_of("bert"):
            loss_of(one, batch).backward()
            # As many rows in each process: gradients are averaged.
            loss_of(found, {key: value[3 * rank :][:3] for key, value in batch.items()}).backward()
            refuse_unconnected(found)
            assert without_gradient(found) == without_gradient(one), name
            for each, optimizer in zip((one, found), optimizers, strict=True):
                optimizer.step()
                each.after_step()
                optimizer.zero_grad()
        expected = one.trained()
        # Some stay whole after it, which the optimizer would not have changed.
        loss_of(found, batch)
        with whole(found):
            trained = {key: value.detach().clone() for key, value in found.trained().items()}
        for key, value in trained.items():
            torch.testing.assert_close(value, expected[key].detach(), rtol=1e-4, atol=1e-5)
        place = folder / name
        place.mkdir(parents=True, exist_ok=True)
        save_trained(found, place, writes=rank == 0)
        with torch.no_grad(), whole(found, written=True):
            for value in found.trained().values():
                value.fill_(7.0)
        loss_of(found, batch)
        distributed.barrier()
        load_trained(found, place)
        load_trained(one, place)
        with whole(found):
            assert all(torch.equal(value, trained[key]) for key, value in found.trained().items()), name
        assert all(torch.equal(value, trained[key]) for key, value in one.trained().items()), name
    assert refused == {"adalora", "vblora", "unilora", "tinylora"}


def main(folder):
    shard_on_cpus()
    for method, (kind, settings) in RUNS.items():
        os.environ["FSDP_STATE_DICT_TYPE"] = kind
        train(folder, method, method, settings)
        for step in STOPPED:
            if PartialState().is_main_process:
                stop(folder, method, step)
            PartialState().wait_for_everyone()
            train(folder, f"{method}-{step}", method, settings)
    check_methods(folder / "methods")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
