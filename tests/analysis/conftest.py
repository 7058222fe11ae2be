import pytest
import torch
from safetensors.torch import save_file
from weights import HOSTILE, weight

from lowrank_ldu.analysis import SurveyOptions


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory):
    """Matrices of several shapes and dtypes, one with a hostile name, and one of everything that is skipped."""
    bad = weight(5, 4)
    bad[1, 2], bad[3, 0] = torch.nan, torch.inf
    state = {
        "tall": weight(30, 12),
        "wide": weight(10, 25, seed=1, dtype=torch.bfloat16),
        "convolution": weight(6, 3, 2, 2, seed=2, dtype=torch.float64),
        HOSTILE: weight(9, 9, seed=3),
        "zero": torch.zeros(4, 5),
        "bias": weight(12),
        "scalar": torch.tensor(1.0),
        "stack": weight(2, 3, 4),
        "video": weight(2, 3, 1, 2, 2, 1),
        "row": weight(1, 8),
        "empty": torch.zeros(0, 4),
        "ids": torch.arange(6).reshape(2, 3),
        "mask": torch.ones(2, 3, dtype=torch.bool),
        "quantized": weight(4, 4).to(torch.float8_e4m3fn),
        "bad": bad,
    }
    path = tmp_path_factory.mktemp("checkpoint") / "model.safetensors"
    save_file(state, path)
    return path


@pytest.fixture(scope="session")
def options():
    return SurveyOptions(ranks=(3, 8), mode="exact", threads=1)


@pytest.fixture(scope="session")
def checkpoints(tmp_path_factory):
    """A base and a tuned checkpoint with one tensor of every kind."""
    bad = weight(5, 4)
    bad[1, 2] = torch.nan
    base = {
        "tall": weight(30, 12),
        "half": weight(10, 25, seed=1, dtype=torch.bfloat16),
        "convolution": weight(6, 3, 2, 2, seed=2, dtype=torch.float64),
        HOSTILE: weight(9, 9, seed=3),
        "unchanged": weight(4, 5),
        "bias": weight(12),
        "reshaped": weight(4, 6),
        "renamed": weight(4, 4),
        "missing": weight(3, 3),
        "quantized": weight(4, 4),
        "bad": weight(5, 4),
        "overflow": torch.full((2, 2), 3e38),
    }
    tuned = {
        name: tensor + 0.01 * weight(*tensor.shape, seed=9).to(tensor.dtype)
        for name, tensor in base.items()
        if name in {"tall", "half", "convolution", HOSTILE, "bias"}
    } | {
        "unchanged": base["unchanged"].clone(),
        "reshaped": weight(6, 4),
        "model.renamed": weight(4, 4),
        "extra": weight(2, 2),
        "quantized": weight(4, 4).to(torch.int8),
        "bad": bad,
        "overflow": -base["overflow"],
    }
    tuned["half"] = tuned["half"].float() + 1e-4
    folder = tmp_path_factory.mktemp("checkpoints")
    paths = folder / "base.safetensors", folder / "tuned.safetensors"
    for state, path in zip((base, tuned), paths, strict=True):
        save_file(state, path)
    return paths
