"""What fitting to a task costs beside training, and how much of a gradient chosen rows and columns hold.

pytest benchmarks/test_fitting.py -s

The model is all-MiniLM-L6-v2 with a new head, the data are sentences of chatterbot-corpus with six topics.
"""

import os
import resource
import subprocess
import sys
import time
from functools import cache
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import scipy.linalg
import torch
import yaml
from minilm import folder
from transformers import AutoTokenizer, BertForSequenceClassification

from lowrank_ldu.fitting import choose_pivots, fit_basis, loss_gradients, target_layers
from lowrank_ldu.fitting.energy import GradientEnergy
from lowrank_ldu.fitting.selection import columns_for

ROOT = Path(__file__).parents[1]
TOPICS = ("ai", "emotion", "humor", "literature", "psychology", "trivia")
BATCHES, SIZE, TOKENS = 16, 32, 32
LAYERS = r"bert\.encoder\..*"


def sentences():
    place = Path(find_spec("chatterbot_corpus").submodule_search_locations[0]) / "data" / "english"
    found = {}
    for label, topic in enumerate(TOPICS):
        content = yaml.safe_load((place / f"{topic}.yml").read_text(encoding="utf-8"))
        for sentence in (str(sentence) for conversation in content["conversations"] for sentence in conversation):
            found.setdefault(sentence, label)
    pairs = list(found.items())
    return [pairs[index] for index in np.random.default_rng(0).permutation(len(pairs))]


def batches(count, skipped=0):
    tokenizer = AutoTokenizer.from_pretrained(folder())
    pairs = sentences()[skipped * SIZE : (skipped + count) * SIZE]
    taken = []
    for start in range(0, count * SIZE, SIZE):
        texts, labels = zip(*pairs[start : start + SIZE], strict=True)
        rows = tokenizer(list(texts), truncation=True, max_length=TOKENS, padding="max_length", return_tensors="pt")
        taken.append({**rows, "labels": torch.tensor(labels)})
    return taken


def model():
    torch.manual_seed(0)
    return BertForSequenceClassification.from_pretrained(folder(), num_labels=len(TOPICS))


def train(network, data, lr=1e-5):
    network.train()
    optimizer = torch.optim.AdamW([p for p in network.parameters() if p.requires_grad], lr=lr)
    for batch in data:
        network(**batch).loss.backward()
        optimizer.step()
        optimizer.zero_grad()


def test_time_and_memory_beside_training():
    """Each in a process of its own; processor time, since threads wait where cores are shared."""
    targeted = sum(layer.weight().numel() for layer in target_layers(model(), LAYERS)) * 4 / 2**20
    print(f"\none copy of the targeted gradients: {targeted:.0f} MiB")
    places = (ROOT, ROOT / "tests" / "tools")
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(map(str, places))}
    for name in WAYS:
        done = subprocess.run(
            [sys.executable, __file__, name], check=True, capture_output=True, text=True, env=environment
        )
        seconds, before, peak = map(float, done.stdout.split()[-3:])
        line = f"{name:30s} {seconds:6.1f} s of processor time, {peak - before:6.0f} MiB above the loaded model"
        print(line, flush=True)


WAYS = {
    "16 training steps": train,
    "gradients alone": lambda model, data: [None for _ in loss_gradients(model, target_layers(model, LAYERS), data)],
    "choose_pivots, rank 16": lambda model, data: choose_pivots(model, data, targets=LAYERS, rank=16),
    "choose_pivots, budget 9,216": lambda model, data: choose_pivots(model, data, targets=LAYERS, budget=9216),
    "fit_basis, rank 32": lambda model, data: fit_basis(model, data, targets=LAYERS, rank=32),
    "fit_basis, complete, rank 256": lambda model, data: fit_basis(
        model, data, targets=LAYERS, rank=256, method="complete"
    ),
}


@cache
def gradients():
    network = model()
    network.bert.requires_grad_(requires_grad=False)
    train(network, batches(BATCHES), lr=5e-3)
    layers = [layer for layer in target_layers(network, LAYERS) if layer.name.split(".")[3] in "035"]
    first, other = (
        {layer.name: total for layer, total in loss_gradients(network, layers, batches(BATCHES, skipped), batches=None)}
        for skipped in (0, BATCHES)
    )
    return [(layer.weight().detach(), first[layer.name], other[layer.name]) for layer in layers]


def sketch(W, G, r):
    generator = torch.Generator().manual_seed(0)

    def pivots(A):
        return torch.from_numpy(scipy.linalg.lu(A.numpy(), p_indices=True)[0]).argsort()[:r].tolist()

    right, left = (torch.randn(size, r, generator=generator) for size in (G.shape[1], G.shape[0]))
    return pivots(W @ (G.T @ left)), pivots(W.T @ (G @ right))


def qr_pivots(A, r):
    return scipy.linalg.qr(A.numpy(), pivoting=True, mode="r")[1][:r].tolist()


def leading(A, r):
    return torch.linalg.svd(A, full_matrices=False)[2][:r]


def matching_pursuit(A, B, r):
    unit, basis, chosen = A / A.norm(dim=0), A.new_zeros(len(A), 0), []
    for _ in range(r):
        score = ((B.T @ unit) ** 2).sum(dim=0)
        score[chosen] = -1
        chosen.append(int(score.argmax()))
        q = A[:, chosen[-1]] - basis @ (basis.T @ A[:, chosen[-1]])
        q = (q - basis @ (basis.T @ q)) / q.norm()
        basis, B = torch.cat([basis, q[:, None]], dim=1), B - torch.outer(q, q @ B)
    return chosen


def alternating(turns):
    def choose(W, G, r):
        energy = GradientEnergy(G.clone())
        rows = energy.rows(W, r)
        columns = energy.columns(W, r, rows.basis)
        for _ in range(turns):
            rows = energy.rows(W, r, columns.basis)
            columns = energy.columns(W, r, rows.basis)
        return rows.indices, columns.indices

    return choose


CHOICES = {
    "random": lambda W, _, r: [
        torch.randperm(n, generator=torch.Generator().manual_seed(0))[:r].tolist() for n in W.shape
    ],
    "QR with pivoting of G": lambda _, G, r: (qr_pivots(G.T, r), qr_pivots(G, r)),
    "DEIM of G (pivoted QR of singular vectors)": lambda _, G, r: (
        qr_pivots(leading(G.T, r), r),
        qr_pivots(leading(G, r), r),
    ),
    "leverage scores of G^T W and W G^T": lambda W, G, r: (
        (leading(G @ W.T, r) ** 2).sum(0).topk(r).indices.tolist(),
        (leading(G.T @ W, r) ** 2).sum(0).topk(r).indices.tolist(),
    ),
    "LU of a sketch of G^T W and W G^T": sketch,
    "QR with pivoting of G^T W and W G^T": lambda W, G, r: (qr_pivots(G @ W.T, r), qr_pivots(G.T @ W, r)),
    "largest correlations, at once": lambda W, G, r: (
        (((W @ G.T) ** 2).sum(1) / (W * W).sum(1)).topk(r).indices.tolist(),
        (((G.T @ W) ** 2).sum(0) / (W * W).sum(0)).topk(r).indices.tolist(),
    ),
    "simultaneous matching pursuit": lambda W, G, r: (matching_pursuit(W.T, G.T, r), matching_pursuit(W, G, r)),
    "least squares, separate": lambda W, G, r: (
        columns_for(W.T.contiguous(), G.T, r).indices,
        columns_for(W, G, r).indices,
    ),
    "least squares, alternating once": alternating(0),
    "least squares, alternating twice": alternating(1),
}


@pytest.mark.parametrize("rank", [8, 16, 32])
def test_energy_that_choices_hold(rank):
    print(f"\nrank {rank}: mean share of the gradient's energy, %, of the same batches and of others; time")
    torch.set_num_threads(1)
    for name, choose in CHOICES.items():
        same, other, start = [], [], time.process_time()
        chosen = [choose(W, G, rank) for W, G, _ in gradients()]
        seconds = (time.process_time() - start) / len(chosen)
        for (W, *both), (rows, columns) in zip(gradients(), chosen, strict=True):
            left, right = torch.linalg.qr(W[:, columns]).Q, torch.linalg.qr(W[rows].T).Q
            for G, shares in zip(both, (same, other), strict=True):
                shares.append(float(((left.T @ G @ right) ** 2).sum() / (G * G).sum()))
        print(f"{name:44s} {100 * np.mean(same):6.2f} {100 * np.mean(other):6.2f} {1e3 * seconds:8.1f} ms a layer")


if __name__ == "__main__":
    torch.set_num_threads(1)  # more of them would wait, where cores are shared, and waiting counts
    network, data = model(), batches(BATCHES)
    network.eval()
    with torch.no_grad():
        network(**data[0])
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    start = time.process_time()
    WAYS[sys.argv[1]](network, data)
    print(time.process_time() - start, before / 1024, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
