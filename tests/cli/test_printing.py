"""What the commands print: on any terminal, of any names, and errors of their arguments."""

import csv
import io
import json
import os
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import save_file
from typer.testing import CliRunner

from lowrank_ldu.analysis.report.tables import write_csv
from lowrank_ldu.cli import _run
from lowrank_ldu.cli.app import app
from lowrank_ldu.cli.console import SafeConsole, print_anywhere, say
from lowrank_ldu.formatting import cell, printable

EVIL = [
    "=cmd|' /C calc'!A0",
    "@SUM(1)",
    "+1",
    "-2+3",
    " \t=1",
    "\uff1d1",
    "a\x1b]0;b\x07",
    "\u202eb",
    "c\nd",
    "\x9b31m",
]
WIDE = "\uff1d\uff0b\uff0d\uff20"  # = + - @ as wide as other characters of such texts


def weights(path, factor=1.0, names=("a.weight", *EVIL)):
    torch.manual_seed(0)
    save_file({name: factor * torch.randn(8, 6) for name in names}, path)


@pytest.mark.parametrize("encoding", ["cp1252", "ascii"])
def test_any_encoding(tmp_path, encoding):
    """One process for all commands that print of a checkpoint, of names with every trick."""
    weights(tmp_path / "base.safetensors", names=["a", "ﬁ→…✓", *EVIL])
    torch.manual_seed(1)
    weights(tmp_path / "tuned.safetensors", 1.1, ["a", "ﬁ→…✓", *EVIL])
    code = (
        "import sys\nfrom lowrank_ldu.cli import main\n"
        "for words in sys.argv[1:]:\n"
        "    sys.argv = ['lowrank-ldu', *words.split()]\n"
        "    try:\n        main()\n    except SystemExit as exit:\n        print('exit', exit.code)\n"
    )
    commands = [
        "analyze base.safetensors --rank 2 --threads 1 --out analyzed --times yes",
        "claims base.safetensors --rank 2 --threads 1",
        "compare base.safetensors tuned.safetensors --rank 2 --threads 1 --out compared",
        "export nowhere --to lora --base base.safetensors --out exported",
        "analyze --help",
        "analyze odd.pt --rank 2 --threads 1 --out odd",
        "--help",
        "analyze nosuch\xb5.pt",
    ]
    # Names that no encoding has: halves of surrogate pairs, which pickles hold.
    torch.save({"a\ud800b": torch.eye(6), "\udcff": torch.ones(5, 7)}, tmp_path / "odd.pt")
    env = {**os.environ, "PYTHONIOENCODING": encoding, "PYTHONUTF8": "0"}
    done = subprocess.run(
        [sys.executable, "-c", code, *commands], cwd=tmp_path, capture_output=True, env=env, check=False
    )
    out, errors = done.stdout.decode(encoding), done.stderr.decode(encoding)
    assert [line for line in out.splitlines() if line.startswith("exit")] == [
        f"exit {n}" for n in (0, 0, 0, 2, 0, 0, 0, 2)
    ]
    assert "Traceback" not in errors
    assert not any(char in out + errors for char in ("\x1b", "\x07", "\x9b", "\u202e"))
    micro, name = ("us", "nosuch\\xb5.pt") if encoding == "ascii" else ("\xb5s", "nosuch\xb5.pt")
    assert f" {micro} " in out
    assert f"error: {name}: no such file" in errors
    stored = json.loads((tmp_path / "odd" / "analysis.json").read_text(encoding="utf-8"))
    assert [tensor["name"] for tensor in stored["tensors"]] == ["a\ud800b", "\udcff"]
    assert "a\\ud800b,,a\\ud800b,ldu," in (tmp_path / "odd" / "figures.csv").read_text(encoding="utf-8")


@pytest.fixture
def streams(monkeypatch):
    """Stdout and stderr of an encoding, and what was written to them."""

    def replace(encoding):
        written = {}
        for name in ("stdout", "stderr"):
            written[name] = io.BytesIO()
            stream = io.TextIOWrapper(written[name], encoding=encoding, write_through=True, newline="\n")
            monkeypatch.setattr(sys, name, stream)
        return written

    monkeypatch.setattr(sys, "excepthook", sys.excepthook)
    return replace


@pytest.mark.parametrize("encoding", ["ascii", "cp1252", "gbk", "latin-1", "shift_jis", "utf-8"])
def test_names_are_escaped_and_symbols_spelled(streams, encoding):
    written = streams(encoding)
    print_anywhere()
    name = "\u0432\u0435\u0441\xb5\u2026\ud800\U0001f600"
    say(name)
    SafeConsole().print("\xb1 \u221e \u2264 1, 2\u207b\u2078, \u2016W\u2016")
    first, second = written["stdout"].getvalue().decode(encoding).splitlines()
    shown = "".join(char if _has(encoding, char) else ascii(char)[1:-1] for char in name)
    assert first == (shown if encoding != "utf-8" else "\u0432\u0435\u0441\xb5\u2026\\ud800\U0001f600")
    spelled = {"\xb1": "+-", "\u221e": "inf", "\u2264": "<=", "\u207b": "^-", "\u2078": "8", "\u2016": "||"}
    expected = "\xb1 \u221e \u2264 1, 2\u207b\u2078, \u2016W\u2016"
    assert second == "".join(char if _has(encoding, char) else spelled[char] for char in expected)


def _has(encoding, char):
    try:
        char.encode(encoding)
    except UnicodeEncodeError:
        return False
    return True


def test_tracebacks_are_escaped(streams):
    written = streams("ascii")
    print_anywhere()
    error = KeyError("\xe9")
    error.__cause__ = ValueError("a\x1b[31m\u202eb\x9b")
    sys.excepthook(KeyError, error, None)
    text = written["stderr"].getvalue().decode("ascii")
    assert "ValueError: a\\x1b[31m\\u202eb\\x9b\n" in text
    assert text.endswith("KeyError: '\\xe9'\n")


def test_closed_streams_are_left_alone(monkeypatch):
    for name in ("stdout", "stderr"):
        monkeypatch.setattr(sys, name, None)
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)
    print_anywhere()
    say("of no use")
    say("of no use", err=True)


def test_the_package_runs_as_a_module():
    done = subprocess.run(
        [sys.executable, "-m", "lowrank_ldu", "--version"], capture_output=True, text=True, check=True
    )
    assert done.stdout.startswith("lowrank-ldu ")


def test_names_in_tables_of_a_spreadsheet(tmp_path):
    path = tmp_path / "table.csv"
    write_csv(path, ["name", "number"], [{"name": name, "number": -1.5} for name in EVIL])
    with path.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    for row, name in zip(rows, EVIL, strict=True):
        assert row["number"] == "-1.5"
        assert row["name"].isprintable()
        assert not row["name"].strip().startswith(tuple("=+-@" + WIDE))
        assert row["name"].removeprefix("'") == printable(name)


@pytest.mark.parametrize(
    ("name", "written"),
    [("a;=1", r"a\x3b=1"), ('a; "@b', 'a\\x3b "@b'), ("a;b", "a;b"), ("x;1;-y", r"x;1\x3b-y"), (";+1", r"\x3b+1")],
)
def test_formulas_after_a_semicolon(name, written):
    """Which parts cells where the comma is the decimal sign."""
    assert cell(name) == written


@pytest.mark.parametrize("value", [1, -2.5, None, True, float("-inf"), "layer.0", "0", ""])
def test_what_is_no_formula_is_written_as_it_is(value):
    assert cell(value) == value


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("analyze x --rank 8,64", "Invalid value for '--rank': .*; accepted: one value, and --rank again for each"),
        ("analyze x --target-error 0.1,0.5", "Invalid value for '--target-error': .*; accepted: one value, and --tar"),
        ("analyze x --rank 8 64", r"Got unexpected extra argument\S* \(64\); accepted: .* again for each .*\(--rank, "),
        ("export x y --to lora --out z", r"Got unexpected extra argument\S* \(y\)$"),
        (
            "analyze x --pivoting partial,rook",
            "--pivoting is 'partial,rook'; accepted: partial, .*--pivoting again for",
        ),
        (
            "compare x y --pivoting a --pivoting rook",
            "--pivoting is 'a'; accepted: partial, complete, rook, randomized, ",
        ),
        ("analyze", "Missing argument"),
        ("analyze x --rnk 3", "No such option: --rnk; accepted: --rank, --pivoting, "),
        ("compare x y --force", "No such option: --force; accepted: --.*--overwrite"),
        (
            "nonsense",
            "No such command 'nonsense'; accepted: analyze, bench, claims, compare, compare-methods, demo, export",
        ),
        (
            "analyze x --out full",
            "full: is not empty; accepted: an empty or a new folder, or --overwrite to replace its",
        ),
        ("bench --shape 8x8 --out full", "full: is not empty; accepted: an empty or a new folder, or --overwrite to"),
        ("export x --to nothing --out y", "Invalid value for '--to'.*'lora'"),
        (
            "export nosuch --to lora --base b --out o",
            "accepted: a folder with .*, or what PEFT's save_pretrained wrote",
        ),
    ],
)
def test_errors_of_arguments_are_one_line(tmp_path, monkeypatch, capsys, words, message):
    import re

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["lowrank-ldu", *words.split()])
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").touch()
    assert _run(app) == 2
    errors = capsys.readouterr().err
    assert len(errors.splitlines()) == 1
    assert re.match(f"error: .*{message}", errors)


def test_no_words_show_the_help(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["lowrank-ldu"])
    assert _run(app) == 2
    shown = capsys.readouterr()
    assert "analyze" in shown.out + shown.err


def test_warnings_are_lines():
    """Of whatever library, with names escaped."""
    import warnings

    from lowrank_ldu.cli.errors import readable_errors

    runner_app = SimpleNamespace(**vars(__import__("typer"))).Typer()

    @runner_app.command()
    def warn():
        with readable_errors(), warnings.catch_warnings():
            warnings.simplefilter("always")
            warnings.warn("of 'a\x1b[31m'\nand more", UserWarning, stacklevel=1)

    result = CliRunner().invoke(runner_app, [])
    assert result.stderr == "warning: of 'a\\x1b[31m' and more\n"


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="there is no full device")  # noqa: PTH110
@pytest.mark.parametrize("command", [["--help"], ["claims", "a.safetensors", "--rank", "2", "--threads", "1"]])
def test_a_full_disk_behind_stdout_is_one_line(tmp_path, command):
    weights(tmp_path / "a.safetensors", names=["a.weight"])
    with open("/dev/full", "w") as full:  # noqa: PTH123
        run = subprocess.run(
            [sys.executable, "-P", "-m", "lowrank_ldu", *command],
            cwd=tmp_path, stdout=full, stderr=subprocess.PIPE, text=True, check=False,
        )  # fmt: skip
    assert run.returncode == 2
    assert run.stderr.splitlines()[-1] == "error: stdout cannot be written (No space left on device)"
    assert "Traceback" not in run.stderr


@pytest.mark.parametrize(
    ("command", "message"),
    [
        (["analyze", ""], "the name of the checkpoint is empty"),
        (["analyze", "a", "--threads", "1000000"], "threads is 1000000; accepted: an integer from 1 to 1024"),
        (["analyze", "a", "--out", "/proc/x"], "/proc/x.journal: cannot be created in this folder"),
        (["bench", "--shape", "99999999999x99999999999"], "accepted: --shape, --tokens"),
        (["bench", "--shape", "8x8", "--tokens", "99999999999999"], "accepted: --shape, --tokens"),
        (["export", "z\udcff", "--to", "lora", "--out", "a"], "accepted: a path in UTF-8"),
    ],
)
def test_arguments_that_cannot_be(tmp_path, monkeypatch, command, message):
    monkeypatch.chdir(tmp_path)
    run = CliRunner().invoke(app, command)
    assert run.exit_code == 2
    assert message in run.stderr
