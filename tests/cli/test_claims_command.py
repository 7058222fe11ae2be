"""`lowrank-ldu claims`: verdicts on stdout and in two files; one readable line and exit code 2 on bad input."""

import json

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from typer.testing import CliRunner

from lowrank_ldu.cli.app import app

NAMES = ["speed", "orthogonality", "structure", "initialization", "storage"]


def save(folder, **tensors):
    path = folder / "model.safetensors"
    save_file(tensors, path)
    return path


def matrix(m, n, seed=0):
    return torch.from_numpy(np.random.default_rng(seed).standard_normal((m, n))).float()


def run(*arguments):
    return CliRunner().invoke(app, ["claims", *map(str, arguments)])


def test_prints_claims_rules_and_verdicts_and_writes_nothing(tmp_path):
    path = save(tmp_path, **{"[red]a\x1b[31m": torch.diag(torch.arange(9.0, 0, -1)), "b": torch.ones(3)})
    result = run(path, "--rank", 4, "--threads", 1)
    assert result.exit_code == 0, result.output
    for name in NAMES:
        assert f"{name}: " in result.stdout
    assert result.stdout.count("True of a matrix if ") == len(NAMES)
    assert "does not hold" in result.stdout
    assert "1 matrices tested" in result.stdout
    assert "\x1b" not in result.stdout
    assert [file.name for file in tmp_path.iterdir()] == ["model.safetensors"]


def test_writes_json_and_page(tmp_path):
    path = save(tmp_path, a=matrix(12, 9), b=matrix(7, 8, seed=1))
    out = tmp_path / "out"
    result = run(path, "--rank", 2, "--rank", 4, "--exclude", "b", "--out", out, "--seed", 5, "--threads", 1)
    assert result.exit_code == 0, result.output
    assert sorted(file.name for file in out.iterdir()) == ["claims.html", "claims.json"]
    content = json.loads((out / "claims.json").read_text(encoding="utf-8"))
    assert [entry["claim"] for entry in content["claims"]] == NAMES
    assert content["options"]["seed"] == 5
    assert content["options"]["ranks"] == [2, 4]
    assert {case["tensor"] for case in content["claims"][0]["findings"][0]["matrices"]} == {"a"}
    (full,) = (finding for finding in content["claims"][1]["findings"] if finding["rank"] is None)
    assert full["verdict"] == "does not hold"


def test_folder_that_is_not_empty_needs_overwrite(tmp_path):
    path = save(tmp_path, a=matrix(5, 4))
    out = tmp_path / "out"
    out.mkdir()
    (out / "claims.json").write_text("old")
    refused = run(path, "--out", out)
    assert refused.exit_code == 2
    assert "is not empty" in refused.stderr
    assert (out / "claims.json").read_text() == "old"
    assert run(path, "--out", out, "--overwrite", "--threads", 1).exit_code == 0
    assert json.loads((out / "claims.json").read_text(encoding="utf-8"))["format"] == "lowrank-ldu claims 2"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--rank", "0"], "rank is 0"),
        (["--select", "("], "select is '(', not a regular expression"),
        (["--exclude", "."], "its name is excluded"),
        (["--threads", "0"], "threads is 0"),
        (["--seed", "-1"], "seed is -1"),
        (["--out", "no/such/folder"], "does not exist"),
    ],
)
def test_bad_option_is_one_line_and_leaves_nothing(tmp_path, arguments, message, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = run(save(tmp_path, a=matrix(5, 4)), *arguments)
    assert result.exit_code == 2
    assert result.stdout == ""
    assert result.stderr.startswith("error: ")
    assert message in result.stderr
    assert result.stderr.count("\n") == 1
    assert [file.name for file in tmp_path.iterdir()] == ["model.safetensors"]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda folder: folder / "none.safetensors", "no such file"),
        (lambda folder: save(folder, a=torch.full((3, 3), torch.nan)), "'a': it holds 9 entries"),
        (lambda folder: save(folder, a=torch.ones(3)), "1-D: no matrix to factor"),
    ],
)
def test_bad_checkpoint_is_one_line(tmp_path, make, message):
    out = tmp_path / "out"
    result = run(make(tmp_path), "--out", out)
    assert result.exit_code == 2
    assert result.stdout == ""
    assert message in result.stderr
    assert result.stderr.count("\n") == 1
    assert not out.exists()
