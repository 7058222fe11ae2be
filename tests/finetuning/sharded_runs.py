"""Train runs that FSDP2 shards over two processes of a CPU; run as a script, once for each."""

import os
import shutil
import sys
from pathlib import Path

from accelerate import PartialState
from accelerate.state import AcceleratorState
from accelerate.utils import DistributedType

from lowrank_ldu.finetuning import Choice, load_recipe, run_recipe

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

    AcceleratorState.__init__ = init


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


if __name__ == "__main__":
    main(Path(sys.argv[1]))
