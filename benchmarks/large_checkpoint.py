"""Memory and cores of a survey of a synthetic sharded checkpoint, as large as it is told to be.

    python benchmarks/large_checkpoint.py --gigabytes 8

Writes the checkpoint into a temporary folder (or one that it is given, which is kept), runs `lowrank-ldu analyze` on it
as a process of its own, and prints its peak resident memory, the share of all cores that it kept busy, and its time
beside that of `torch.svd_lowrank(W, 64, niter=4)` alone, over the same matrices and with all cores.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

# A layer: two matrices of attention and two of an MLP, as of a model of 7B parameters.
SHAPES = {"self_attn.q_proj": (4096, 4096), "self_attn.o_proj": (4096, 4096), "mlp.up_proj": (11008, 4096),
          "mlp.down_proj": (11008, 4096)}  # fmt: skip


def write_checkpoint(folder, gigabytes):
    """A shard for each layer, and their index; entries of a decaying spectrum, so that ranks mean something."""
    generator = torch.Generator().manual_seed(0)
    layer_bytes = 2 * sum(m * n for m, n in SHAPES.values())
    layers = max(1, round(gigabytes * 1e9 / layer_bytes))
    places = {}
    for layer in range(layers):
        tensors = {}
        for name, (m, n) in SHAPES.items():
            left = torch.randn(m, 64, generator=generator) * torch.logspace(0, -1, 64)
            W = left @ torch.randn(64, n, generator=generator) + torch.randn(m, n, generator=generator)
            tensors[f"model.layers.{layer}.{name}.weight"] = (0.02 * W).to(torch.bfloat16)
        shard = f"model-{layer + 1:05}-of-{layers:05}.safetensors"
        save_file(tensors, folder / shard)
        places |= dict.fromkeys(tensors, shard)
    index = {"metadata": {"total_size": layers * layer_bytes}, "weight_map": places}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return layers * layer_bytes


def analyze(folder, out, options):
    program = "from lowrank_ldu.cli import main; main()"
    command = [sys.executable, "-c", program, "analyze", str(folder), "--out", str(out), *options]
    start = time.perf_counter()
    process = subprocess.Popen(command)
    _, status, usage = os.wait4(process.pid, 0)
    seconds = time.perf_counter() - start
    if os.waitstatus_to_exitcode(status):
        raise SystemExit(f"{' '.join(command)} failed")
    return seconds, usage


def lowrank_seconds(folder):
    """Return the time of a randomized SVD of every matrix, without reading it."""
    seconds = 0.0
    for file in sorted(folder.glob("*.safetensors")):
        for stored in load_file(file).values():
            W = stored.to(torch.float32)
            start = time.perf_counter()
            torch.svd_lowrank(W, 64, niter=4)
            seconds += time.perf_counter() - start
    return seconds


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--gigabytes", type=float, default=8.0)
    parser.add_argument("--folder", type=Path, help="Where the checkpoint is, or is to be, kept.")
    parser.add_argument("options", nargs="*", default=["--mode", "fast"], help="Of analyze, after --.")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = arguments.folder or Path(temporary, "checkpoint")
        if not (folder / "model.safetensors.index.json").exists():
            folder.mkdir(parents=True, exist_ok=True)
            write_checkpoint(folder, arguments.gigabytes)
        size = sum(file.stat().st_size for file in folder.glob("*.safetensors"))
        seconds, usage = analyze(folder, Path(temporary, "report"), arguments.options)
        alone = lowrank_seconds(folder)
    cores = len(os.sched_getaffinity(0))
    busy = (usage.ru_utime + usage.ru_stime) / seconds / cores
    print(f"checkpoint {size / 1e9:.1f} GB, {seconds:.0f} s, {cores} cores {100 * busy:.0f} % busy")
    print(f"svd_lowrank(W, 64, niter=4) alone {alone:.0f} s: {seconds / alone:.2f} times as long")
    print(f"peak resident memory {usage.ru_maxrss * 1024 / 1e9:.2f} GB")


if __name__ == "__main__":
    main()
