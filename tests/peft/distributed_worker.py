"""Train a tiny model on two CPU processes, one half of each batch each, and save what rank 0 ends with; a script."""

import os
import sys

import torch
import torch.distributed as dist
from peft import get_peft_model, get_peft_model_state_dict
from plugin_models import TOKENS, tiny_bert
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FullyShardedDataParallel, fully_shard
from torch.nn.parallel import DistributedDataParallel

from lowrank_ldu.peft import LolduConfig

OPTIMIZERS = {"sgd": (torch.optim.SGD, 0.5), "adamw": (torch.optim.AdamW, 1e-2)}
PIVOTING = ("partial", "complete")
CASES = [(optimizer, pivoting) for optimizer in OPTIMIZERS for pivoting in PIVOTING]


def wrap(mode, model):
    if mode == "ddp":
        return DistributedDataParallel(model)
    if mode == "fsdp1":
        return FullyShardedDataParallel(model, use_orig_params=True, device_id=torch.device("cpu"))
    if mode == "fsdp2":
        mesh = init_device_mesh("cpu", (2,))
        for block in model.base_model.model.bert.encoder.layer:
            fully_shard(block, mesh=mesh)
        return fully_shard(model, mesh=mesh)
    return model


def adapter_state(mode, model, wrapped):
    if mode == "fsdp1":
        with FullyShardedDataParallel.summon_full_params(wrapped):
            return {name: value.clone() for name, value in get_peft_model_state_dict(model).items()}
    if mode == "fsdp2":
        full = {
            name: value.full_tensor() if hasattr(value, "full_tensor") else value
            for name, value in model.state_dict().items()
        }
        return get_peft_model_state_dict(model, state_dict=full)
    return get_peft_model_state_dict(model)


def train(mode, optimizer, pivoting, *, rows=slice(None), dtype=torch.float32):
    """Return the losses of these rows and the adapter in the end."""
    config = LolduConfig(r=8, pivoting=pivoting, target_modules=["query", "value", "dense"], task_type="SEQ_CLS")
    model = get_peft_model(tiny_bert(dtype), config).to(dtype).train()
    wrapped = wrap(mode, model)
    make, rate = OPTIMIZERS[optimizer]
    step = make([value for value in wrapped.parameters() if value.requires_grad], lr=rate)
    generator, losses = torch.Generator().manual_seed(1), []
    for _ in range(4):
        ids = torch.randint(0, TOKENS, (8, 6), generator=generator)
        labels = torch.randint(0, 2, (8,), generator=generator)
        step.zero_grad()
        loss = wrapped(input_ids=ids[rows], labels=labels[rows]).loss
        loss.backward()
        step.step()
        losses.append(loss.detach())
    return torch.stack(losses), adapter_state(mode, model, wrapped)


def work(rank, rendezvous, output, modes):
    dist.init_process_group("gloo", init_method=f"file://{rendezvous}", rank=rank, world_size=2)
    results = {}
    for mode in modes:
        for optimizer, pivoting in CASES:
            losses, state = train(mode, optimizer, pivoting, rows=slice(4 * rank, 4 * rank + 4))
            dist.all_reduce(losses)
            results[mode, optimizer, pivoting] = losses / 2, state
    if rank == 0:
        torch.save(results, output)
    dist.barrier()
    dist.destroy_process_group()


def main(rendezvous, output, modes):
    # Importing takes longest, and is done once.
    other = os.fork()
    if not other:
        status = 1
        try:
            work(1, rendezvous, output, modes)
            status = 0
        finally:
            os._exit(status)
    work(0, rendezvous, output, modes)
    sys.exit(os.waitstatus_to_exitcode(os.waitpid(other, 0)[1]))


if __name__ == "__main__":
    os.environ["HF_HUB_OFFLINE"] = "1"
    main(*sys.argv[1:3], sys.argv[3:])
