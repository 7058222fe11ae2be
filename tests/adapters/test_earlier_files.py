"""Adapters in of_earlier_code/ were written before options were one object: they load, and are written the same."""

import json
from pathlib import Path

import torch
from torch import nn

from lowrank_ldu.adapters import load_adapter, read_adapter, save_adapter
from lowrank_ldu.nn import AdapterOptions

FOLDER = Path(__file__).parent / "of_earlier_code"
OPTIONS = {
    "0": AdapterOptions(rank=4, alpha=8),
    "2": AdapterOptions(
        rank=3, alpha=3, init="normal_zmean_zstd", preserving=False, pivoting="complete", parametrization="gram",
        train_sigma=False, seed=3,
    ),
    "4": AdapterOptions(
        rank=5, alpha=5, init="zeros", pivoting="rook", basis="random", parametrization="normalized", seed=5
    ),
}  # fmt: skip
# What the model gave that the adapter was saved of.
LOGITS = torch.tensor(
    [
        [1.373386, 0.138871, -0.692743, 1.651581, -2.67745],
        [1.008962, -0.021417, -0.422338, 1.245359, -1.994006],
        [0.388742, 0.096681, -0.122653, 0.49918, -0.704896],
    ]
)


def matrix(m, n, factor):
    # Exact in float32 on every machine, since the base is compared bit for bit.
    return ((torch.arange(m * n) * factor + 5) % 31 - 15).reshape(m, n) / 16


def base_model():
    model = nn.Sequential(nn.Linear(9, 7), nn.ReLU(), nn.Linear(7, 8), nn.ReLU(), nn.Linear(8, 5))
    with torch.no_grad():
        for layer, factor in ((model[0], 11), (model[2], 7), (model[4], 13)):
            layer.weight.copy_(matrix(*layer.weight.shape, factor))
            layer.bias.zero_()
    return model


def test_they_load_and_give_the_same_logits():
    assert {name: layer.record.options for name, layer in read_adapter(FOLDER).layers.items()} == OPTIONS
    model = base_model()
    assert load_adapter(model, FOLDER) == list(OPTIONS)
    assert {name: model[int(name)].options for name in OPTIONS} == OPTIONS
    torch.testing.assert_close(model(matrix(3, 9, 3)), LOGITS, atol=1e-5, rtol=1e-5)


def test_they_are_written_as_the_same_text(tmp_path):
    model = base_model()
    load_adapter(model, FOLDER)
    save_adapter(model, tmp_path)
    # But for the checksums: the last bits of a sketch are the machine's.
    texts = []
    for folder in (FOLDER, tmp_path):
        config = json.loads((folder / "adapter.json").read_text(encoding="utf-8"))
        del config["weights_sha256"], config["config_sha256"]
        texts.append(json.dumps(config, indent=1))
    assert texts[0] == texts[1]
