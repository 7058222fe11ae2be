"""What a shell shows and completes: help, choices, completion; all of it without torch."""

import inspect
import itertools
import os
import subprocess
import sys
from typing import get_args

import pytest
from typer.testing import CliRunner

from lowrank_ldu.analysis import options
from lowrank_ldu.cli import analyze, bench
from lowrank_ldu.cli.app import app
from lowrank_ldu.measuring import PRESETS

COMMANDS = ("analyze", "bench", "claims", "compare", "demo", "export", "finetune")
HEAVY = {"torch", "transformers", "peft", "matplotlib", "pyarrow", "sklearn"}


def shown(words, width, monkeypatch):
    monkeypatch.setenv("COLUMNS", str(width))
    result = CliRunner().invoke(app, words)
    assert result.exit_code == 0
    return result.output


@pytest.mark.parametrize("width", [80, 100, 120])
@pytest.mark.parametrize("command", COMMANDS)
def test_help_has_plain_flags_and_whole_sentences(command, width, monkeypatch):
    text = shown([command, "--help"], width, monkeypatch)
    assert not any(noise in text for noise in ("<bool>", "list[", "{", "--no-"))
    about = text[: text.index("╭")].splitlines()
    sentences = " ".join(" ".join(about).split())
    function = next(info.callback for info in app.registered_commands if info.callback.__name__ == command)
    assert sentences.endswith(" ".join(inspect.getdoc(function).split()))
    # A line ends where the next word has no room, or a paragraph ends.
    for line, following in itertools.pairwise(about):
        if line.strip() and following.strip() and "Usage:" not in line:
            assert len(line.rstrip()) + len(following.split()[0]) + 1 >= width - 1


def test_help_of_the_whole(monkeypatch):
    text = shown(["--help"], 100, monkeypatch)
    assert "<bool>" not in text
    assert all(f"│ {command} " in text for command in COMMANDS)


def test_words_of_choices_are_those_of_the_library():
    assert options.MODES == analyze.MODES
    assert options.COMPUTE_DTYPES == analyze.COMPUTE_DTYPES
    assert bench.PRESETS == PRESETS
    assert get_args(options.Mode) == analyze.MODES


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("lowrank-ldu an", {"analyze"}),
        ("lowrank-ldu analyze --mode ", {"fast", "exact", "cheap"}),
        ("lowrank-ldu analyze x --pivoting r", {"rook", "randomized"}),
        ("lowrank-ldu analyze x --engine ", {"local", "dask"}),
        ("lowrank-ldu bench --preset l", {"llama"}),
        ("lowrank-ldu export --to ", {"lora", "merged", "delta"}),
        ("lowrank-ldu compare a b --sel", {"--select"}),
    ],
)
@pytest.mark.parametrize("shell", ["bash", "zsh"])
def test_completion(shell, line, expected, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["lowrank-ldu"])
    variables = {
        "_LOWRANK_LDU_COMPLETE": f"complete_{shell}",
        "COMP_WORDS": line,
        "COMP_CWORD": str(line.count(" ")),
        "_TYPER_COMPLETE_ARGS": line,
    }
    result = CliRunner().invoke(app, [], prog_name="lowrank-ldu", env=variables)
    if shell == "bash":
        assert set(result.output.split()) == expected
    else:
        assert all(f'"{word}"' in result.output for word in expected)


@pytest.mark.parametrize("shell", ["bash", "zsh"])
def test_completion_is_shown_and_installed(tmp_path, shell, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    # The shell is looked for among the processes that tests run in, where there may be none: here it is said.
    monkeypatch.setenv("_TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION", "1")
    for what in ("--show-completion", "--install-completion"):
        result = CliRunner().invoke(app, [what, shell], prog_name="lowrank-ldu")
        assert result.exit_code == 0
        written = [path.read_text() for path in tmp_path.rglob("*") if path.is_file()]
        assert any("_LOWRANK_LDU_COMPLETE" in text for text in (result.output, *written))
    assert written


@pytest.mark.parametrize(
    ("words", "variables"),
    [
        (["--help"], {}),
        (["bench", "--help"], {}),
        ([], {"_LOWRANK_LDU_COMPLETE": "complete_bash", "COMP_WORDS": "lowrank-ldu bench --dtype ", "COMP_CWORD": "3"}),
    ],
)
def test_help_and_completion_import_no_framework(tmp_path, words, variables):
    code = (
        "import atexit, sys\n"
        "atexit.register(lambda: print(*sorted({name.partition('.')[0] for name in sys.modules}), file=sys.stderr))\n"
        "from lowrank_ldu.cli import main\n"
        "main()\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, *words],
        cwd=tmp_path, env={**os.environ, **variables}, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert done.stdout
    assert not HEAVY & set(done.stderr.split())
