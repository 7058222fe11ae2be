"""`lowrank-ldu export`, as a user runs it: once in a process of its own, and else in this one."""

import json
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from lowrank_ldu.adapters import save_adapter
from lowrank_ldu.cli import _run
from lowrank_ldu.cli.app import app
from lowrank_ldu.nn import inject


@pytest.fixture
def run(monkeypatch, capsys):
    """The command with words; its exit code and what it says."""

    def run(*words):
        monkeypatch.setattr(sys, "argv", ["lowrank-ldu", "export", *map(str, words)])
        capsys.readouterr()
        returncode = _run(app)
        said = capsys.readouterr()
        return SimpleNamespace(returncode=returncode, stdout=said.out, stderr=said.err)

    return run


def model():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(24, 32), nn.ReLU(), nn.Linear(32, 16))


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("export")
    save_file(model().state_dict(), folder / "base.safetensors")
    adapted = model()
    inject(adapted, "all-linear", 8)
    with torch.no_grad():
        for layer in (adapted[0], adapted[2]):
            layer.offset.normal_(std=0.1)
    save_adapter(adapted, folder / "adapter")
    return folder


@pytest.mark.parametrize(
    ("to", "file", "said"),
    [
        ("lora", "adapter_model.safetensors", "2 LoRA pairs of rank 8, 4 kB"),
        ("merged", "base.safetensors", "2 tensors merged"),
        ("delta", "delta.safetensors", "2 tensors of updates"),
    ],
)
def test_every_target(run, files, tmp_path, to, file, said):
    result = run(files / "adapter", "--to", to, "--base", files / "base.safetensors", "--out", tmp_path / "out")
    assert (result.returncode, result.stderr) == (0, "")
    assert result.stdout.splitlines() == [said, f"written to {tmp_path / 'out'}"]
    assert load_file(tmp_path / "out" / file)


def test_a_process_of_its_own(files, tmp_path):
    words = ["export", "adapter", "--to", "delta", "--base", "base.safetensors", "--out", tmp_path / "out"]
    code = "from lowrank_ldu.cli import main; main()"
    command = [sys.executable, "-P", "-c", code, *map(str, words)]
    result = subprocess.run(command, cwd=files, capture_output=True, text=True, check=False)
    assert (result.returncode, result.stderr) == (0, "")
    assert result.stdout.splitlines() == ["2 tensors of updates", f"written to {tmp_path / 'out'}"]
    assert load_file(tmp_path / "out" / "delta.safetensors")


def test_a_fitted_basis_is_given_or_found_beside_the_adapter(run, tmp_path, monkeypatch):
    from lowrank_ldu.fitting import fit_basis

    save_file(model().state_dict(), tmp_path / "base.safetensors")
    adapted, batch = model(), torch.randn(16, 24)
    basis = fit_basis(adapted, [batch], lambda model, batch: model(batch).square().mean(), rank=4)
    file = basis.save(tmp_path / "basis.safetensors")
    inject(adapted, "all-linear", fitted_basis=basis)
    save_adapter(adapted, tmp_path / "plain")
    save_adapter(adapted, tmp_path / "named", basis_file=file)

    def export(adapter, *more):
        # As in a process that has fitted nothing.
        monkeypatch.setattr("lowrank_ldu.nn.basis._KNOWN", {})
        return run(adapter, "--to", "delta", "--base", tmp_path / "base.safetensors", "--out", tmp_path / "out", *more)

    refused = export(tmp_path / "plain")
    assert refused.returncode == 2
    assert f"fitted basis {basis.digest}, which is not known; accepted: its file, given as" in refused.stderr
    assert export(tmp_path / "plain", "--basis", file).returncode == 0
    assert export(tmp_path / "named", "--overwrite").returncode == 0


def test_compression_prints_its_error(run, files, tmp_path):
    arguments = (files / "adapter", "--to", "lora", "--base", files / "base.safetensors", "--out", tmp_path / "out")
    result = run(*arguments, "--compress", 2)
    assert result.returncode == 0
    assert "2 LoRA pairs of rank 2" in result.stdout
    assert "relative error of the updates: " in result.stdout


def test_force_warns_and_overwrite_replaces(run, files, tmp_path):
    other = {name: tensor * 1.001 for name, tensor in model().state_dict().items()}
    save_file(other, tmp_path / "other.safetensors")
    arguments = (files / "adapter", "--to", "merged", "--base", tmp_path / "other.safetensors", "--out", tmp_path / "o")
    refused = run(*arguments)
    assert refused.returncode == 2
    assert refused.stderr.startswith("error: layer '0': the weight is not the one that the adapter was trained on")
    assert not (tmp_path / "o").exists()
    forced = run(*arguments, "--accept-other-base")
    assert forced.returncode == 0
    assert [line.split(":")[0] for line in forced.stderr.splitlines()] == ["warning"]
    assert (
        run(*arguments, "--accept-other-base")
        .stderr.splitlines()[-1]
        .startswith(f"error: {tmp_path / 'o'}: is not empty")
    )
    assert run(*arguments, "--accept-other-base", "--overwrite").returncode == 0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"adapter": "none"},
            "No such file or directory; accepted: a folder with adapter.safetensors and",
        ),
        ({"--base": "none.safetensors"}, "no such file or directory"),
        ({"--compress": "0"}, "--compress is 0; accepted: a rank from 1 on"),
        ({"--compress": "2", "--to": "merged"}, "--compress is given with --to merged; accepted: with --to lora"),
        ({"--keep-module-dtype": None}, "--keep-module-dtype is given with --to lora; accepted: with --to merged"),
        ({"--out": "."}, "holds the base model; accepted: another folder"),
        ({"--base": None}, "--base is not given, and the adapter does not name its base; accepted: --base with the"),
    ],
    ids=str,
)
def test_what_is_refused(run, files, tmp_path, change, message):
    options = {"--to": "lora", "--base": "base.safetensors", "--out": str(tmp_path / "out")}
    adapter = files / change.pop("adapter", "adapter")
    options |= change
    if options["--base"] is None:
        del options["--base"]
    else:
        options["--base"] = str(files / options["--base"])
    if options["--out"] == ".":
        options["--out"] = str(files)
    result = run(adapter, *(part for item in options.items() for part in item if part is not None))
    assert result.returncode == 2
    assert result.stderr.startswith("error: ")
    assert len(result.stderr.splitlines()) == 1
    assert message in result.stderr
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("named", ["base", "nowhere", "OWNER/NAME"])
def test_the_base_that_an_adapter_of_peft_names_is_taken(run, tmp_path, named):
    """PEFT writes down what the model was loaded from."""
    from peft import get_peft_model

    from lowrank_ldu.peft import LolduConfig

    save_file(model().state_dict(), tmp_path / "base.safetensors")
    adapted = get_peft_model(model(), LolduConfig(r=4, target_modules=["0"], init_weights=False))
    adapted.save_pretrained(tmp_path / "adapter")
    config = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    config["base_model_name_or_path"] = str(tmp_path / "base.safetensors") if named == "base" else named
    (tmp_path / "adapter" / "adapter_config.json").write_text(json.dumps(config))
    result = run(tmp_path / "adapter", "--to", "delta", "--out", tmp_path / "out")
    if named == "base":
        assert (result.returncode, result.stderr) == (0, "")
        assert list(load_file(tmp_path / "out" / "delta.safetensors")) == ["0.weight"]
    else:
        said = (
            f"error: --base is not given, and the base that the adapter names, {named!r}, is no folder or file here; "
        )
        assert (result.returncode, result.stderr.startswith(said)) == (2, True)


def test_help_says_what_it_does(run):
    result = run("--help")
    assert result.returncode == 0
    for word in (
        "--base",
        "--to",
        "lora|merged|delta",
        "--compress",
        "--keep-module-dtype",
        "--accept-other-base",
        "--overwrite",
    ):
        assert word in result.stdout
