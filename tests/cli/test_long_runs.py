"""`--resume`: a command that was stopped goes on from the journal beside its folder, and reports the same."""

import json
from contextlib import contextmanager

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from lowrank_ldu.analysis.comparison import work as comparison_module
from lowrank_ldu.analysis.engine import survey as survey_module
from lowrank_ldu.cli import progress as progress_module
from lowrank_ldu.cli.app import app
from lowrank_ldu.errors import ClusterError, RemoteError

MATRICES = 4


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """One with a base and a tuned checkpoint, which the commands are run in."""
    monkeypatch.chdir(tmp_path)
    draw = np.random.default_rng(0).standard_normal
    weights = {f"w{number}": torch.from_numpy(draw((9 + number, 7))).float() for number in range(MATRICES)}
    save_file(weights, "base.safetensors")
    save_file({name: W + 0.1 * W**2 for name, W in weights.items()}, "tuned.safetensors")
    return tmp_path


COMMANDS = {
    "claims": ("base.safetensors",),
    "compare": ("base.safetensors", "tuned.safetensors"),
}


def run(command, *more, out="out"):
    sources = COMMANDS.get(command, ["base.safetensors"])
    return CliRunner().invoke(app, [command, *sources, "--out", out, "--rank", "2", "--threads", "1", *more])


def stop_at(finished, monkeypatch, error=KeyboardInterrupt):
    @contextmanager
    def show_progress():
        def update(state):
            if state.finished == finished:
                raise error

        yield update

    monkeypatch.setattr(progress_module, "show_progress", show_progress)


def counted(monkeypatch):
    """The list that each computation of a matrix is put on."""
    done = []
    for module, name in ((survey_module, "analyze_matrix"), (comparison_module, "compare_matrices")):
        compute = getattr(module, name)
        monkeypatch.setattr(module, name, lambda *args, compute=compute: done.append(1) or compute(*args))
    return done


def figures(folder):
    """What the documents in a folder say, but for seconds and the claim that is about them."""

    def strip(value):
        if isinstance(value, dict):
            return {key: strip(item) for key, item in value.items() if "seconds" not in key}
        return [strip(item) for item in value] if isinstance(value, list) else value

    (document,) = folder.glob("*.json")
    content = json.loads(document.read_text(encoding="utf-8"))
    content["claims"] = [claim for claim in content.get("claims", []) if claim["claim"] != "speed"]
    return strip(content)


@pytest.mark.usefixtures("folder")
@pytest.mark.parametrize("command", ["analyze", *COMMANDS])
def test_a_terminal_is_told_each_stage(monkeypatch, command):
    assert "libraries" not in run(command, out="piped").stderr
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "100")
    told = run(command).stderr
    stages = ["loading libraries", "reading the checkpoint", f"{MATRICES}/{MATRICES}", "writing the report"]
    places = [told.find(stage) for stage in stages]
    assert -1 not in places, told
    assert places == sorted(places)


@pytest.mark.parametrize("command", COMMANDS)
def test_goes_on_and_reports_the_same(folder, monkeypatch, command):
    with monkeypatch.context() as patch:
        stop_at(3, patch)
        stopped = run(command)
    assert stopped.exit_code == 130
    assert stopped.stderr == "out.journal has the results so far; --resume goes on from there\ninterrupted\n"
    assert sorted(path.name for path in folder.iterdir()) == ["base.safetensors", "out.journal", "tuned.safetensors"]
    refused = run(command)
    assert refused.exit_code == 2
    assert "out.journal: is the journal of a run that was not finished; accepted: --resume" in refused.stderr
    with monkeypatch.context() as patch:
        done = counted(patch)
        resumed = run(command, "--resume")
    assert resumed.exit_code == 0, resumed.output
    assert len(done) == MATRICES - 2
    assert sorted(path.name for path in folder.iterdir()) == ["base.safetensors", "out", "tuned.safetensors"]
    assert run(command, out="whole").exit_code == 0
    assert figures(folder / "out") == figures(folder / "whole")


@pytest.mark.parametrize("command", ["analyze", *COMMANDS])
@pytest.mark.parametrize("error", [ClusterError, RemoteError])
def test_what_is_lost_on_the_way_is_gone_on_from(folder, monkeypatch, command, error):
    with monkeypatch.context() as patch:
        stop_at(3, patch, error("the connection to it is lost"))
        stopped = run(command)
    assert stopped.exit_code == 2
    told = "out.journal has the results so far; --resume goes on from there\nerror: the connection to it is lost\n"
    assert stopped.stderr == told
    assert run(command, "--resume").exit_code == 0
    assert not (folder / "out.journal").exists()


def test_a_report_that_cannot_be_written_leaves_the_journal(folder, monkeypatch):
    """It is found out when the work is done."""

    def fill(*_):
        (folder / "out").mkdir()
        (folder / "out" / "notes").write_text("of somebody else")

    monkeypatch.setattr("lowrank_ldu.analysis.write_comparison", fill)
    refused = run("compare")
    assert refused.exit_code == 2
    lines = refused.stderr.splitlines()
    assert lines[0] == "out.journal has the results so far; --resume goes on from there"
    assert lines[1].startswith("error: out: is not empty")
    assert (folder / "out.journal").read_bytes().count(b'"result"') == MATRICES
    monkeypatch.undo()
    monkeypatch.chdir(folder)
    assert run("compare", "--resume", "--overwrite").exit_code == 0
    assert not (folder / "out.journal").exists()


def test_a_journal_of_another_command_is_named(folder, monkeypatch):
    stop_at(3, monkeypatch)
    assert run("compare").exit_code == 130
    refused = run("claims", "--resume")
    assert refused.exit_code == 2
    assert "out.journal: cannot be continued: it is of a comparison, and this is an analysis;" in refused.stderr
    assert (folder / "out.journal").read_bytes().count(b'"result"') == 2


def test_nothing_to_compare_leaves_no_journal(folder):
    """Matrices that are equal are kept in it, as long as there may be others."""
    save_file(load_file("base.safetensors"), "tuned.safetensors")
    result = run("compare")
    assert result.exit_code == 2
    assert "no matrix is in both and changed; 4 x unchanged" in result.stderr
    assert sorted(path.name for path in folder.iterdir()) == ["base.safetensors", "tuned.safetensors"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["--resume"],
            "--resume is given without --out; accepted: with the --out that the journal to go on",
        ),
        (["--engine", "dask"], "--engine dask is given without --scheduler; accepted: the scheduler's address"),
        (["--scheduler", "tcp://h:1"], "--scheduler is given with --engine local; accepted: with --engine dask"),
        (["--engine", "dask", "--scheduler", "tcp://h:1", "--threads", "2"], "--threads is given with --engine dask"),
    ],
)
@pytest.mark.usefixtures("folder")
def test_options_of_claims_that_do_not_go_together(arguments, message):
    result = CliRunner().invoke(app, ["claims", "base.safetensors", *arguments])
    assert result.exit_code == 2
    assert result.stdout == ""
    assert result.stderr.startswith(f"error: {message}")
    assert result.stderr.count("\n") == 1
