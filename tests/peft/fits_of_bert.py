"""Files of pivots and of a basis that were fitted to a small BERT, and configurations that use them."""

import torch
from plugin_models import tiny_bert, tokens

from lowrank_ldu.fitting import choose_pivots, fit_basis

TARGETS = ["query", "value"]
# With ranks that differ between layers.
RANKS = {
    f"bert.encoder.layer.{block}.attention.self.{name}": rank
    for (block, name), rank in zip([(0, "query"), (0, "value"), (1, "query"), (1, "value")], (6, 4, 4, 6), strict=True)
}
FORMS = {
    "dense": {"r": 5, "core": "dense", "parametrization": "gram"},
    "block": {"r": 6, "core": "block", "block_size": 3, "pivoting": "complete"},
    "chosen": {"pivots_file": "pivots.safetensors", "core": "dense"},
    "chosen-block": {
        "pivots_file": "pivots.safetensors", "core": "block", "block_size": 2, "parametrization": "normalized",
    },
    "fitted": {"basis_file": "basis.safetensors"},
    "fitted-dense": {"basis_file": "basis.safetensors", "core": "dense", "r": 4},
}  # fmt: skip


def loss(model, seed):
    """A loss of every token, so that gradients have the ranks that are asked for."""
    states = model.bert(tokens(6)).last_hidden_state
    return (states * torch.randn(states.shape, generator=torch.Generator().manual_seed(seed))).mean()


def save_fits(folder, seed=0):
    """Save pivots.safetensors and basis.safetensors for `tiny_bert`, and return both."""
    pivots = choose_pivots(tiny_bert(), [seed], loss, targets=TARGETS, rank=RANKS)
    basis = fit_basis(tiny_bert(), [seed], loss, targets=TARGETS, rank=RANKS)
    pivots.save(folder / "pivots.safetensors")
    basis.save(folder / "basis.safetensors")
    return pivots, basis


def form(name, folder):
    """Return the options of a form, with its file in a folder."""
    return {key: str(folder / value) if key.endswith("_file") else value for key, value in FORMS[name].items()}
