"""What is trained: forms of LDU, and LoRA of equal or larger size."""

import hashlib
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from movies_training import loss_of
from peft import LoraConfig, get_peft_model

from lowrank_ldu.adapters import save_adapter
from lowrank_ldu.decomposition import Factorization, ldu
from lowrank_ldu.fitting import choose_pivots, loss_gradients, target_layers
from lowrank_ldu.nn import inject, lowrank_layers

ATTENTION = ["query", "key", "value", "attention.output.dense"]
EVERY = r".*\.layer\.\d+\..*"
GRADIENT_BATCHES = 16
# The middle one is tried first.
LDU_RATES, LORA_RATES, SMALL_LORA_RATES = (2e-2, 1e-2, 5e-2), (2e-3, 1e-3, 5e-3), (5e-3, 2e-3, 1e-2)


@dataclass(frozen=True)
class Method:
    """One way of adapting the classifier.

    `adapt(model, batches)` changes it in place; batches are those that factors are fitted to, None for `fitted_on` None.
    """

    name: str
    what: str
    rates: tuple[float, ...]
    adapt: Callable
    fitted_on: str | None = None


def lora(rank, targets):
    def adapt(model, _):
        # lora_alpha is the rank, so that the scale is 1 whatever the rank.
        config = LoraConfig(r=rank, lora_alpha=rank, target_modules=targets, lora_dropout=0.0, bias="none")
        model.encoder = get_peft_model(model.encoder, config)

    return adapt


def of_weights(rank=None, **options):
    """LDU of the weights themselves."""

    def adapt(model, _):
        inject(model, ATTENTION, rank, train_sigma=False, parametrization="gram", **options)

    return adapt


def at_pivots(targets, **choice):
    """A dense core between rows and columns of the weights that a task chose."""

    def adapt(model, batches):
        pivots = choose_pivots(model, batches, loss_of, targets=targets, batches=GRADIENT_BATCHES, **choice)
        inject(model, list(pivots), core="dense", train_sigma=False, parametrization="gram", pivots=pivots)

    return adapt


class GradientBasis:
    """Factors of the gradients of a loss."""

    def __init__(self, factors):
        self._factors = factors
        digest = hashlib.sha256()
        for name, own in factors.items():
            digest.update(name.encode() + own.left.numpy().tobytes() + own.right.numpy().tobytes())
        self.digest = digest.hexdigest()

    def factors(self, layer):
        return self._factors[layer]

    def check(self, layer, matrix):
        pass


def _leading_terms(gradient, rank, near_best):
    if near_best:
        left, values, right = torch.linalg.svd(gradient.double(), full_matrices=False)
        gradient = ((left[:, :rank] * values[:rank]) @ right[:rank]).to(gradient.dtype)
    factors = ldu(gradient, rank, pivoting="complete")
    return Factorization(factors.left, factors.diagonal, factors.right)


def in_gradient_basis(targets, rank, core="diagonal", near_best=False, parametrization="normalized"):
    """A core between factors of the task's gradients."""

    def adapt(model, batches):
        layers = target_layers(model, targets)
        gradients = loss_gradients(model, layers, batches, loss_of, batches=GRADIENT_BATCHES)
        basis = GradientBasis({layer.name: _leading_terms(own, rank, near_best) for layer, own in gradients})
        options = {"core": core, "train_sigma": False, "parametrization": parametrization}
        inject(model, [layer.name for layer in layers], fitted_basis=basis, **options)

    return adapt


METHODS = [
    Method("lora-8", "LoRA r = 8, q k v o", LORA_RATES, lora(8, ATTENTION)),
    Method(
        "pivots-20", "dense core 20 x 20 at pivots that the gradient chose, q k v o", LDU_RATES,
        at_pivots(ATTENTION, rank=20), "movies",
    ),
    Method(
        "basis-32-best", "diagonal, near-best LDU of the gradient, r = 32, all linear", LDU_RATES,
        in_gradient_basis(EVERY, 32, near_best=True), "movies",
    ),
    Method(
        "basis-256", "diagonal, LDU of the gradient, r = 256, all linear", LDU_RATES,
        in_gradient_basis(EVERY, 256), "movies",
    ),
    Method("lora-1", "LoRA r = 1, q v", SMALL_LORA_RATES, lora(1, ["query", "value"])),
    Method(
        "pivots-16-all", "dense core 16 x 16 at pivots that the gradient chose, all linear", LDU_RATES,
        at_pivots(EVERY, rank=16), "movies",
    ),
    Method(
        "pivots-budget", "dense cores at pivots that the gradient chose, all linear, 9,600 numbers shared by energy",
        LDU_RATES, at_pivots(EVERY, budget=9600), "movies",
    ),
    Method("weights-full", "diagonal, LDU of W, full rank, q k v o", LDU_RATES, of_weights()),
    Method("weights-20", "dense core 20 x 20, LDU of W, q k v o", LDU_RATES, of_weights(20, core="dense")),
    Method(
        "basis-dense-20", "dense core 20 x 20 in the basis of the gradient, q k v o", LDU_RATES,
        in_gradient_basis(ATTENTION, 20, core="dense", near_best=True, parametrization="gram"), "movies",
    ),
    Method(
        "basis-256-news", "diagonal, LDU of the gradient on the news set, r = 256, all linear", LDU_RATES,
        in_gradient_basis(EVERY, 256), "news",
    ),
    Method(
        "basis-256-amazon", "diagonal, LDU of the gradient on the amazon set, r = 256, all linear", LDU_RATES,
        in_gradient_basis(EVERY, 256), "amazon",
    ),
    Method(
        "pivots-20-news", "dense core 20 x 20 at pivots that the news set's gradient chose, q k v o", LDU_RATES,
        at_pivots(ATTENTION, rank=20), "news",
    ),
    Method(
        "pivots-20-activation", "dense core 20 x 20 at pivots that activations chose, q k v o", LDU_RATES,
        at_pivots(ATTENTION, rank=20, source="activation"), "movies",
    ),
]  # fmt: skip


def file_bytes(model):
    """Bytes of the adapter's files; those of a fitted basis, which adapters share, do not count."""
    with tempfile.TemporaryDirectory() as folder:
        if any(lowrank_layers(model)):
            save_adapter(model, folder)
        else:
            model.encoder.save_pretrained(folder)
        names = {"README.md"}  # PEFT's template of a model card
        return sum(file.stat().st_size for file in Path(folder).rglob("*") if file.is_file() and file.name not in names)
