"""`lowrank-ldu bench` as a user runs it."""

import csv
import re

import pytest
from typer.testing import CliRunner

from lowrank_ldu.cli.app import app

RUN = [
    "bench",
    "--shape",
    "24x20",
    "--tokens",
    "40",
    "--rank",
    "4",
    "--seconds",
    "0.01",
    "--adapters",
    "3",
    "--device",
    "cpu",
]


@pytest.fixture(autouse=True)
def _kernels_are_not_interpreted(monkeypatch):
    """As where a user runs it: on the CPU the Triton kernels are left out."""
    monkeypatch.setenv("TRITON_INTERPRET", "0")


def run(*arguments):
    return CliRunner().invoke(app, list(arguments))


def test_tables_files_and_appending(tmp_path):
    out = tmp_path / "first"
    result = run(*RUN, "--out", str(out))
    assert result.exit_code == 0, result.output
    assert "24 x 20, T = 40, r = 4, float32: forward and backward" in result.stdout
    assert "not run: lowrank-ldu, packed: plan 'packed' cannot run here" in result.stdout
    assert "not run: lowrank-ldu, triton: plan 'triton' cannot run here" in result.stdout
    assert sorted(path.name for path in out.iterdir()) == ["ratios.png", "ratios.svg", "results.csv"]
    first = list(csv.DictReader((out / "results.csv").read_text().splitlines()))
    again = run(*RUN, "--out", str(tmp_path / "second"), "--append", str(out / "results.csv"))
    assert again.exit_code == 0, again.output
    both = list(csv.DictReader((tmp_path / "second" / "results.csv").read_text().splitlines()))
    assert both[: len(first)] == first
    assert len(both) == 2 * len(first)


def test_beside_a_busy_process(tmp_path):
    result = run(*RUN, "--busy", "--lora-rank", "2", "--out", str(tmp_path / "out"))
    assert result.exit_code == 0, result.output
    assert result.stdout.count("beside a busy process") == 2
    assert "PEFT LoRA r = 2" in result.stdout
    rows = list(csv.DictReader((tmp_path / "out" / "results.csv").read_text().splitlines()))
    assert {row["neighbors"] for row in rows} == {"1"}
    assert "beside 1 busy process" in (tmp_path / "out" / "ratios.svg").read_text()


def test_the_quick_preset_asks_for_little(monkeypatch):
    asked = []

    def run_case(case, **options):
        asked.append((case.title, options["seconds"]))
        raise KeyboardInterrupt

    monkeypatch.setattr("lowrank_ldu.measuring.run_case", run_case)
    for words in (["--preset", "quick"], ["--preset", "base"], ["--preset", "quick", "--seconds", "7"]):
        run("bench", *words, "--device", "cpu")
    assert asked == [
        ("768 x 768, T = 512, r = 64", 3.0),
        ("768 x 768, T = 2048, r = 64", 20.0),
        ("768 x 768, T = 512, r = 64", 7.0),
    ]


def test_without_a_folder_nothing_is_written(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = run(*RUN)
    assert result.exit_code == 0
    assert list(tmp_path.iterdir()) == []
    # What it says beforehand, meanwhile where there is no terminal, and below each table.
    first, *stages = result.stderr.splitlines()
    assert first.startswith("2 tables, about ")
    assert stages[0] == "1/1 24 x 20, T = 40, r = 4: checking"
    assert "1/1 24 x 20, T = 40, r = 4: timing, training" in stages
    assert len(re.findall(r"auto \(\w+\) takes \d+\.\d\d of the fastest plan's time", result.stdout)) == 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--shape", "24"], "--shape is '24'; accepted: OUTxIN, such as 768x3072"),
        (["--shape", "0x3"], "--shape is '0x3'"),
        (["--shape", "24x20", "--rank", "21"], "--rank is 21; accepted: 1 to 20 for a layer 24 x 20"),
        (["--shape", "24x20", "--preset", "base"], "--shape and --preset are given; accepted: one of them"),
        (["--rank", "4"], "--rank is given without --shape"),
        (["--tokens", "7"], "--tokens is given without --shape; accepted: both, or a preset"),
        (["--preset", "large"], "preset is 'large'; accepted: 'base', 'quick', 'llama', 'decode'"),
        (["--device", "tpu"], "--device is 'tpu'; accepted: cpu, cuda"),
        (["--dtype", "int8"], "--dtype is 'int8'; accepted: float32, bfloat16, float16, float64"),
        (["--seconds", "0"], "--seconds is 0; accepted: a positive number"),
        (["--seconds", "nan"], "--seconds is nan; accepted: a positive number"),
        (["--threads", "0"], "--threads is 0; accepted: from 1 on"),
        (["--tokens", "-1", "--shape", "2x2"], "--tokens is -1; accepted: from 1 on"),
        (["--adapters", "0"], "--adapters is 0; accepted: from 1 on"),
        (["--lora-rank", "0"], "--lora-rank is 0; accepted: from 1 on"),
        (["--append", "old.csv"], "--append is given without --out; accepted: both"),
    ],
)
def test_bad_options(arguments, message):
    result = run("bench", *arguments)
    assert result.exit_code == 2
    assert f"error: {message}" in result.stderr
    assert len(result.stderr.splitlines()) == 1


def test_a_file_that_is_no_table(tmp_path):
    (tmp_path / "old.csv").write_text("a,b\n")
    result = run(*RUN, "--out", str(tmp_path / "new"), "--append", str(tmp_path / "old.csv"))
    assert result.exit_code == 2
    assert "its columns are not those of this version" in result.stderr
    assert not (tmp_path / "new").exists()
