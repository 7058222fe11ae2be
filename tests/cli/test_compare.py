"""`lowrank-ldu compare`: the report on good input; one readable line, exit code 2 and no trace on bad input."""

import minilm
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from lowrank_ldu import ldu
from lowrank_ldu.analysis import CompareOptions, compare_checkpoints
from lowrank_ldu.cli.app import app
from lowrank_ldu.nn import inject, lowrank_layers, unload

FILES = [
    "compare-tensors.csv", "compare-tensors.parquet", "compare.csv", "compare.html", "compare.json", "compare.parquet",
    "figures",
]  # fmt: skip


def matrix(m, n, seed=0):
    return torch.from_numpy(np.random.default_rng(seed).standard_normal((m, n))).float()


def save(path, **tensors):
    save_file(tensors, path)
    return path


def compare(*arguments):
    return CliRunner().invoke(app, ["compare", *map(str, arguments), "--threads", "1"])


@pytest.fixture
def pair(tmp_path):
    name = "[red]a\x1b[31m"
    base = save(tmp_path / "base.safetensors", **{name: matrix(12, 9), "b": torch.ones(3), "c": matrix(4, 4)})
    tuned = save(tmp_path / "tuned.safetensors", **{name: matrix(12, 9, seed=1), "b": torch.ones(3)})
    return base, tuned


@pytest.fixture
def out(tmp_path):
    return tmp_path / "out"


def test_writes_the_report(tmp_path, pair, out):
    result = compare(*pair, "--rank", 4, "--rank", 2, "--pivoting", "rook", "--out", out)
    assert result.exit_code == 0, result.output
    assert sorted(file.name for file in out.iterdir()) == FILES
    for text in (
        "rank 2",
        "rank 4",
        "full rank",
        "LDU, rook",
        "LoRA, its least",
        "1 matrices were changed, 0 are equal",
        f"Base: {pair[0]}",
        f"Tuned: {pair[1]}",
    ):
        assert text in result.stdout
    assert "2 not compared: 1 x 1-D: no matrix to factor; 1 x only in the base." in result.stdout
    assert "\x1b" not in result.stdout
    assert sorted(file.name for file in tmp_path.iterdir()) == ["base.safetensors", "out", "tuned.safetensors"]


def test_folder_that_is_not_empty_needs_overwrite(pair, out):
    out.mkdir()
    (out / "compare.html").write_text("old")
    refused = compare(*pair, "--out", out)
    assert refused.exit_code == 2
    assert "is not empty" in refused.stderr
    assert (out / "compare.html").read_text() == "old"
    assert compare(*pair, "--out", out, "--overwrite").exit_code == 0
    assert sorted(file.name for file in out.iterdir()) == FILES


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["missing.safetensors", "tuned.safetensors"], "missing.safetensors: no such file"),
        (["base.safetensors", "missing.safetensors"], "missing.safetensors: no such file"),
        (["base.safetensors", "damaged.safetensors"], "not a readable safetensors file"),
        (["base.safetensors", "base.safetensors"], "no matrix is in both and changed; 2 x unchanged"),
        (["base.safetensors", "nan.safetensors"], "the tuned tensor holds 16 entries that are not finite"),
        (["base.safetensors", "tuned.safetensors", "--rank", "0"], "rank is 0"),
        (["base.safetensors", "tuned.safetensors", "--pivoting", "total"], "pivoting is 'total'"),
        (["base.safetensors", "tuned.safetensors", "--select", "("], "not a regular expression"),
        (["base.safetensors", "tuned.safetensors", "--out", "no/such/folder"], "does not exist"),
    ],
)
def test_bad_input_is_one_line_and_leaves_nothing(tmp_path, pair, arguments, message, monkeypatch):
    assert pair
    monkeypatch.chdir(tmp_path)
    save(tmp_path / "nan.safetensors", c=torch.full((4, 4), torch.nan))
    (tmp_path / "damaged.safetensors").write_bytes(b"\xff" * 64)
    before = sorted(tmp_path.iterdir())
    result = compare(*arguments)
    assert result.exit_code == 2
    assert result.stdout == ""
    assert message in result.stderr
    assert result.stderr.startswith("error: ")
    assert result.stderr.count("\n") == 1
    assert sorted(tmp_path.iterdir()) == before


def test_real_weights_with_a_constructed_update(tmp_path):
    """One layer is changed by what its LDU diagonal can do, one by a LoRA of rank 2."""
    state = load_file(minilm.checkpoint())
    expressible, other = (f"encoder.layer.0.attention.self.{part}.weight" for part in ("query", "value"))
    factors = ldu(state[expressible], 64)
    d = torch.from_numpy(np.random.default_rng(0).standard_normal(64)).float()
    updates = {
        expressible: 1e-3 * (factors.left * d) @ factors.right,
        other: 1e-3 * matrix(384, 2) @ matrix(2, 384, seed=1),
    }
    tuned = save(
        tmp_path / "tuned.safetensors",
        **{name: W + updates[name] if name in updates else W for name, W in state.items()},
    )
    comparison = compare_checkpoints(minilm.checkpoint(), tuned, CompareOptions(ranks=(2, 64), threads=1))
    assert len(comparison.unchanged) == 38
    matrices = {tensor.name: matrix for tensor, matrix in comparison.matrices}
    assert set(matrices) == set(updates)

    # What storing the sum in float32 rounds away is all that the diagonal cannot express.
    inside = matrices[expressible]
    assert inside.ldu["partial"].explained[64] == pytest.approx(1, abs=1e-6)
    assert inside.ldu["complete"].explained[64] < 0.1

    lora = matrices[other]
    assert lora.spectrum.energy[2] == pytest.approx(1, abs=1e-6)
    assert lora.spectrum.energy[1] > 0.4
    # The base's bases know nothing of it: within a few times of the expectation of a random update.
    for terms in (*lora.ldu.values(), lora.svd):
        assert terms.explained[384] < 5 * lora.random(384)


@pytest.mark.parametrize("pivoting", ["partial", "complete"])
def test_what_a_layer_learned_is_explained_by_its_own_terms(tmp_path, pivoting):
    model = torch.nn.Sequential(torch.nn.Linear(40, 30))
    base = save(tmp_path / "base.safetensors", **{name: W.clone() for name, W in model.state_dict().items()})
    inject(model, ["0"], rank=8, pivoting=pivoting)
    with torch.no_grad():
        for _, layer in lowrank_layers(model):
            layer.offset.normal_()
    unload(model)
    tuned = save(tmp_path / "tuned.safetensors", **model.state_dict())
    options = CompareOptions(ranks=(7, 8), pivoting=("partial", "complete"), threads=1)
    ((_, matrix),) = compare_checkpoints(base, tuned, options).matrices
    assert matrix.ldu[pivoting].explained[8] == pytest.approx(1, abs=1e-6)
    other = {"partial": "complete", "complete": "partial"}[pivoting]
    assert matrix.ldu[other].explained[8] < 0.9
    assert matrix.spectrum.energy[8] == pytest.approx(1, abs=1e-6)
