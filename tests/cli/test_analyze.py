"""`lowrank-ldu analyze`: the report on good input; one readable line, exit code 2 and no trace on bad input."""

import csv
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from typer.testing import CliRunner

from lowrank_ldu import __version__
from lowrank_ldu.analysis.engine import survey as survey_module
from lowrank_ldu.cli.app import app

FILES = [
    "analysis.json", "curves.csv", "curves.parquet", "figures", "figures.csv", "figures.parquet", "report.html",
    "targets.csv", "targets.parquet", "tensors.csv", "tensors.parquet",
]  # fmt: skip
MAIN = [sys.executable, "-P", "-W", "error", "-c", "from lowrank_ldu.cli import main; main()"]
ONE_THREAD = {**os.environ, "OMP_NUM_THREADS": "1"}


def matrix(m, n, seed=0):
    return torch.from_numpy(np.random.default_rng(seed).standard_normal((m, n))).float()


def save(folder, **tensors):
    path = folder / "model.safetensors"
    save_file(tensors, path)
    return path


def analyze(*arguments):
    return CliRunner().invoke(app, ["analyze", *map(str, arguments)])


@pytest.fixture
def out(tmp_path):
    return tmp_path / "out"


def test_writes_the_report(tmp_path, out):
    path = save(tmp_path, **{"[red]a\x1b[31m": matrix(12, 9), "b": torch.ones(3)})
    result = analyze(path, "--rank", 4, "--rank", 2, "--pivoting", "rook", "--out", out, "--threads", 1)
    assert result.exit_code == 0, result.output
    assert sorted(file.name for file in out.iterdir()) == FILES
    assert "Medians over 1 matrix, at rank 4" in result.stdout
    assert "1 skipped: 1 x 1-D: no matrix to factor." in result.stdout
    assert "\x1b" not in result.stdout
    assert sorted(file.name for file in tmp_path.iterdir()) == ["model.safetensors", "out"]


def test_folder_that_is_not_empty_needs_overwrite(tmp_path, out):
    path = save(tmp_path, a=matrix(5, 4))
    out.mkdir()
    (out / "report.html").write_text("old")
    refused = analyze(path, "--out", out)
    assert refused.exit_code == 2
    assert "is not empty" in refused.stderr
    assert (out / "report.html").read_text() == "old"
    assert analyze(path, "--out", out, "--overwrite", "--threads", 1).exit_code == 0
    assert sorted(file.name for file in out.iterdir()) == FILES


def truncated(folder):
    path = save(folder, a=matrix(20, 20))
    path.write_bytes(path.read_bytes()[:-100])
    return path


def corrupt(folder):
    path = folder / "model.safetensors"
    path.write_bytes(b"\xff" * 64)
    return path


class Malicious:
    def __reduce__(self):
        return (os.mkdir, ("must-not-exist",))


def malicious(folder):
    path = folder / "model.pt"
    torch.save({"weight": Malicious()}, path)
    return path


BAD_CHECKPOINTS = {
    "missing": (lambda folder: folder / "none.safetensors", "no such file"),
    "truncated": (truncated, "not a readable safetensors file"),
    "corrupt": (corrupt, "not a readable safetensors file"),
    "malicious": (malicious, "wants to run code"),
    "unknown suffix": (lambda folder: Path(__file__), "unknown suffix"),
    "only NaN": (lambda folder: save(folder, a=torch.full((3, 3), torch.nan)), "'a': it holds 9 entries"),
    "no matrices": (lambda folder: save(folder, a=torch.ones(3), b=torch.ones(4)), "'a' and 1 more: 1-D"),
    "no tensors": (save, "holds no tensors at all"),
}


@pytest.mark.parametrize("kind", BAD_CHECKPOINTS)
def test_bad_checkpoint_is_one_line_and_leaves_nothing(tmp_path, out, kind, monkeypatch):
    monkeypatch.chdir(tmp_path)
    make, message = BAD_CHECKPOINTS[kind]
    path = make(tmp_path)
    before = sorted(tmp_path.iterdir())
    result = analyze(path, "--out", out)
    assert result.exit_code == 2
    assert result.stdout == ""
    assert message in result.stderr
    assert result.stderr.startswith("error: ")
    assert result.stderr.count("\n") == 1
    assert sorted(tmp_path.iterdir()) == before


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--rank", "0"], "rank is 0"),
        (["--rank", "-3"], "rank is -3"),
        (["--pivoting", "total"], "pivoting is 'total'; accepted: partial, complete, rook, randomized"),
        (["--select", "("], "select is '(', not a regular expression"),
        (["--select", "nothing-like-it"], "its name does not match the selection"),
        (["--threads", "0"], "threads is 0"),
        (["--seed", "-1"], "seed is -1"),
        (["--rank", "eight"], "Invalid value for '--rank'"),
        (["--out", "no/such/folder"], "does not exist"),
        (["--engine", "spark"], "Invalid value for '--engine'"),
        (["--engine", "dask"], "--engine dask is given without --scheduler; accepted: the scheduler's address"),
        (
            ["--scheduler", "tcp://127.0.0.1:1"],
            "--scheduler is given with --engine local; accepted: with --engine dask",
        ),
        (
            ["--engine", "dask", "--scheduler", "tcp://h:1", "--threads", "2"],
            "--threads is given with --engine dask, whose workers have their own; accepted: with --engine local",
        ),
        (
            ["--engine", "dask", "--scheduler", "tcp://h:1", "--device", "cuda"],
            "--device is cuda with --engine dask, whose workers would share it; accepted: with --engine local",
        ),
    ],
)
def test_bad_option_is_named(tmp_path, out, arguments, message, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = save(tmp_path, a=matrix(5, 4))
    result = analyze(path, "--out", out, *arguments)
    assert result.exit_code == 2
    assert message in " ".join(result.stderr.replace("│", " ").split())
    assert "Traceback" not in result.output
    assert [file.name for file in tmp_path.iterdir()] == ["model.safetensors"]


def test_a_bug_keeps_its_traceback(tmp_path, out, monkeypatch):
    def broken(*_, **__):
        raise AssertionError("a bug")

    monkeypatch.setattr("lowrank_ldu.analysis.checkpoint.survey", broken)
    result = analyze(save(tmp_path, a=matrix(5, 4)), "--out", out)
    assert isinstance(result.exception, AssertionError)
    assert not out.exists()


def wait_for_lines(journal, count, process):
    while not journal.exists() or journal.read_bytes().count(b"\n") < count:
        assert process.poll() is None
        time.sleep(0.01)


def figures_of(out):
    with (out / "figures.csv").open(newline="") as file:
        return [{key: value for key, value in row.items() if key != "seconds"} for row in csv.DictReader(file)]


# So many that a process can be stopped on the way.
MATRICES = 16
ONE_BY_ONE = ["--rank", "4", "--threads", "1"]


def save_many(folder):
    return save(folder, **{f"w{number}": matrix(160 + number, 150, number) for number in range(MATRICES)})


@pytest.fixture(scope="module")
def figures_of_many(tmp_path_factory):
    """What an analysis that nothing stops ends with."""
    folder = tmp_path_factory.mktemp("many")
    assert analyze(save_many(folder), "--out", folder / "whole", *ONE_BY_ONE).exit_code == 0
    return figures_of(folder / "whole")


@pytest.mark.skipif(os.name == "nt", reason="Windows sends Ctrl-C to whole consoles only")
@pytest.mark.parametrize("stop", [signal.SIGINT, signal.SIGKILL])
def test_goes_on_after_a_stop(tmp_path, out, stop, figures_of_many):
    path, options = save_many(tmp_path), ONE_BY_ONE
    journal = tmp_path / "out.journal"
    with subprocess.Popen(
        [*MAIN, "analyze", str(path), "--out", str(out), *options], stderr=subprocess.PIPE, text=True, env=ONE_THREAD
    ) as process:
        wait_for_lines(journal, 3, process)
        process.send_signal(stop)
        _, errors = process.communicate(timeout=10)
    if stop == signal.SIGINT:
        assert process.returncode == 130
        assert errors.strip().endswith("out.journal has the results so far; --resume goes on from there\ninterrupted")
        assert "Traceback" not in errors
    # What locked the journal is left after a kill, and locks nothing.
    left = ["model.safetensors", "out.journal"] + ["out.journal.lock"] * (stop == signal.SIGKILL)
    assert sorted(file.name for file in tmp_path.iterdir()) == left
    kept = journal.read_bytes().count(b"\n") - 1
    assert 2 <= kept < MATRICES

    refused = analyze(path, "--out", out, *options)
    assert refused.exit_code == 2
    assert "is the journal of a run that was not finished; accepted: --resume" in refused.stderr
    analyzed = []
    analyze_matrix = survey_module.analyze_matrix
    with mock.patch.object(
        survey_module, "analyze_matrix", lambda *arguments: analyzed.append(1) or analyze_matrix(*arguments)
    ):
        resumed = analyze(path, "--out", out, *options, "--resume")
    assert resumed.exit_code == 0, resumed.output
    assert len(analyzed) == MATRICES - kept
    assert sorted(file.name for file in tmp_path.iterdir()) == ["model.safetensors", "out"]
    assert figures_of(out) == figures_of_many


@pytest.mark.skipif(os.name == "nt", reason="Windows cannot stop a process for a while")
def test_two_processes_do_not_write_one_journal(tmp_path, out):
    path, options = save_many(tmp_path), ONE_BY_ONE
    journal = tmp_path / "out.journal"
    with subprocess.Popen([*MAIN, "analyze", str(path), "--out", str(out), *options], env=ONE_THREAD) as process:
        wait_for_lines(journal, 2, process)
        process.send_signal(signal.SIGSTOP)
        before = journal.read_bytes()
        for more in ([], ["--resume"]):
            refused = analyze(path, "--out", out, *options, *more)
            assert refused.exit_code == 2
            assert refused.stderr == (
                f"error: {journal}: is being written by another process; accepted: wait for it, or stop it\n"
            )
        assert journal.read_bytes() == before
        process.kill()
    assert analyze(path, "--out", out, *options, "--resume").exit_code == 0


def test_help_is_quick_and_imports_nothing_heavy():
    code = (
        "import sys\nfrom lowrank_ldu.cli import main\n"
        "try:\n    main()\nexcept SystemExit as exit:\n    assert exit.code == 0\n"
        "assert not {'torch', 'matplotlib', 'pandas', 'jinja2'} & set(sys.modules)\n"
    )
    shown = subprocess.run([sys.executable, "-P", "-c", code, "--help"], capture_output=True, text=True, check=True)
    assert "analyze" in shown.stdout


def test_version():
    result = CliRunner().invoke(app, ["--version"])
    assert result.stdout == f"lowrank-ldu {__version__}\n"
    assert result.exit_code == 0


def test_missing_extra_is_named():
    code = "import sys\nsys.modules['typer'] = None\nfrom lowrank_ldu.cli import main\nmain()"
    result = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True, check=False)
    assert result.returncode == 2
    assert result.stderr == "error: the command line needs typer: pip install 'lowrank-ldu[analysis]'\n"
