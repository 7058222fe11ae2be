"""Rows of PEFT's tests with cores of blocks, and with what was fitted to a model of these tests."""

import torch
from loldu_for_lora import RANK, Loldu

from lowrank_ldu.fitting import choose_pivots, fit_basis

_MLP = {"target_modules": ["lin0", "lin1"]}
_PIVOTS, _BASIS = "mlp.pivots", "mlp.basis"
_EMBEDDING = {"target_modules": ["conv1d", "emb"], "core": "dense"}
# In the form of PEFT's own rows: the test's name, the model, the configuration and its options.
ROWS = [
    ("Vanilla MLP dense", "MLP", Loldu, {**_MLP, "core": "dense"}),
    ("Vanilla MLP block", "MLP", Loldu, {**_MLP, "core": "block", "block_size": 2, "parametrization": "gram"}),
    ("Embedding + transformers Conv1D dense", "EmbConv1D", Loldu, _EMBEDDING),
    ("Conv2d dense", "Conv2d", Loldu, {"target_modules": ["conv2d", "lin0"], "core": "dense"}),
    ("Vanilla MLP chosen pivots", "MLP", Loldu, {**_MLP, "pivots_file": _PIVOTS, "core": "dense"}),
    ("Vanilla MLP fitted basis", "MLP", Loldu, {**_MLP, "basis_file": _BASIS}),
]


def save_fits(folder, model):
    """Save pivots and a basis of PEFT's MLP: seen from the folder, the paths are those of the rows."""
    batch = torch.randn(8, 10, generator=torch.Generator().manual_seed(0))
    options = {"targets": _MLP["target_modules"], "rank": RANK, "source": "activation"}
    for fit, name in ((choose_pivots, _PIVOTS), (fit_basis, _BASIS)):
        fit(model, [batch], lambda model, batch: model(batch), **options).save(folder / name)
