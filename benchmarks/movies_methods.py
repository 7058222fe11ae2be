"""What is trained: forms of LDU, and LoRA of equal or larger size."""

import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from movies_training import loss_of
from peft import LoraConfig, get_peft_model

from lowrank_ldu.adapters import save_adapter
from lowrank_ldu.fitting import choose_pivots, fit_basis
from lowrank_ldu.nn import inject, lowrank_layers

ATTENTION = ["query", "key", "value", "attention.output.dense"]
# Without query and key; "output.dense" is of attention, too.
MOST_GRADIENT = ["value", "intermediate.dense", "output.dense"]
EVERY = r".*\.layer\.\d+\..*"
GRADIENT_BATCHES = 16
# In the order in which they are tried.
LDU_RATES, LORA_RATES = (2e-2, 1e-2, 5e-2, 1e-1), (2e-3, 1e-3, 5e-3, 1e-2)
SMALL_LORA_RATES = (5e-3, 2e-3, 1e-2, 2e-2)


@dataclass(frozen=True)
class Method:
    """One way of adapting the classifier.

    `adapt(model, batches)` changes it in place; factors are fitted to the batches, which are of the set `fitted_on`.
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


def in_basis(targets, rank, method, *, core="diagonal", parametrization="normalized", **fit):
    """A core between factors of the task's gradients."""

    def adapt(model, batches):
        choice = {"targets": targets, "rank": rank, "method": method, "batches": GRADIENT_BATCHES} | fit
        basis = fit_basis(model, batches, loss_of, **choice)
        options = {"core": core, "train_sigma": False, "parametrization": parametrization}
        inject(model, list(basis.rank_pattern), fitted_basis=basis, **options)

    return adapt


METHODS = [
    Method("lora-8", "LoRA r = 8, q k v o", LORA_RATES, lora(8, ATTENTION)),
    Method(
        "pivots-20", "dense core 20 x 20 at pivots that the gradient chose, q k v o", LDU_RATES,
        at_pivots(ATTENTION, rank=20), "movies",
    ),
    Method(
        "basis-32-best", "diagonal, near-best LDU of the gradient, r = 32, all linear", LDU_RATES,
        in_basis(EVERY, 32, "ldu_lowrank"), "movies",
    ),
    Method(
        "basis-32-scaled", "diagonal, near-best LDU of the scaled gradient, r = 32, all linear", LDU_RATES,
        in_basis(EVERY, 32, "ldu_lowrank", source="scaled_gradient"), "movies",
    ),
    Method(
        "basis-256", "diagonal, LDU of the gradient, r = 256, all linear", LDU_RATES,
        in_basis(EVERY, 256, "complete"), "movies",
    ),
    Method(
        "basis-256-vof", "diagonal, LDU of the gradient, r = 256, v o and MLP", LDU_RATES,
        in_basis(MOST_GRADIENT, 256, "complete"), "movies",
    ),
    Method(
        "basis-48-vof", "diagonal, near-best LDU of the gradient, r = 48, v o and MLP", LDU_RATES,
        in_basis(MOST_GRADIENT, 48, "ldu_lowrank"), "movies",
    ),
    Method(
        "basis-budget", "diagonal, near-best LDU of the gradient, all linear, 1,200 numbers shared by energy",
        LDU_RATES, in_basis(EVERY, None, "ldu_lowrank", budget=1200), "movies",
    ),
    Method(
        "basis-dense-16", "dense core 16 x 16 in the basis of the gradient, all linear", LDU_RATES,
        in_basis(EVERY, 16, "ldu_lowrank", core="dense", parametrization="gram"), "movies",
    ),
    Method(
        "basis-dense-20-vof", "dense core 20 x 20 in the basis of the gradient, v o and MLP", LDU_RATES,
        in_basis(MOST_GRADIENT, 20, "ldu_lowrank", core="dense", parametrization="gram"), "movies",
    ),
    Method(
        "basis-256-long", "diagonal, LDU of the gradient of all training batches, r = 256, all linear", LDU_RATES,
        in_basis(EVERY, 256, "complete", batches=None), "movies",
    ),
    Method(
        "basis-256-svd", "diagonal, SVD of the gradient, r = 256, all linear", LDU_RATES,
        in_basis(EVERY, 256, "svd"), "movies",
    ),
    Method("lora-1", "LoRA r = 1, q v", SMALL_LORA_RATES, lora(1, ["query", "value"])),
    Method(
        "pivots-20-vof", "dense core 20 x 20 at pivots that the gradient chose, v o and MLP", LDU_RATES,
        at_pivots(MOST_GRADIENT, rank=20), "movies",
    ),
    Method(
        "pivots-14-vof", "dense core 14 x 14 at pivots that the gradient chose, v o and MLP", LDU_RATES,
        at_pivots(MOST_GRADIENT, rank=14), "movies",
    ),
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
        in_basis(ATTENTION, 20, "ldu_lowrank", core="dense", parametrization="gram"), "movies",
    ),
    Method(
        "basis-256-news", "diagonal, LDU of the gradient on the news set, r = 256, all linear", LDU_RATES,
        in_basis(EVERY, 256, "complete"), "news",
    ),
    Method(
        "basis-256-amazon", "diagonal, LDU of the gradient on the amazon set, r = 256, all linear", LDU_RATES,
        in_basis(EVERY, 256, "complete"), "amazon",
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
