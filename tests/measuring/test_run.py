"""What a measurement is made of: methods that are right, memory that adds up, tables that read back."""

import csv
from pathlib import Path

import pytest
import torch

from lowrank_ldu.measuring import COLUMNS, Case, cases_of, read_rows, run_case, write_plots, write_rows
from lowrank_ldu.measuring import methods as methods_module
from lowrank_ldu.measuring.memory import peak_bytes, saved_bytes
from lowrank_ldu.measuring.methods import FROZEN, LayerMethod, adapted_layer, base_layer, methods_of
from lowrank_ldu.measuring.run import deviation, expected_output, expected_seconds, is_right
from lowrank_ldu.measuring.timing import LEAST_ROUNDS, MOST_ROUNDS, measure

CPU = torch.device("cpu")
CASE = Case(24, 20, 50, 8)
FULL = Case(20, 24, 50, 20)


@pytest.fixture(scope="module", params=[CASE, FULL], ids=["thin", "full"])
def result(request):
    options = {"device": CPU, "dtype": torch.float32, "seconds": 0.01, "adapters": 7, "device_name": "test"}
    return request.param, run_case(request.param, **options)


def test_everything_that_can_run_is_timed(result):
    case, measured = result
    expected = {
        "frozen nn.Linear",
        "full fine-tuning",
        "PEFT LoRA r = 16",
        "naive (dense P, diag as a matrix)",
        "lowrank-ldu, 1 adapter in a batch",
        "lowrank-ldu, 7 adapters in a batch",
        "lowrank-ldu, reference",
        "lowrank-ldu, factored",
        "lowrank-ldu, hybrid",
        "lowrank-ldu, materialized",
    }
    expected.add("lowrank-ldu, packed" if case is FULL else "lowrank-ldu, skeleton")
    for mode in case.modes:
        rows = [row for row in measured.rows if row.mode == mode]
        labels = {row.label for row in rows}
        assert {label for label in labels if not label.startswith("lowrank-ldu, auto")} - {
            "lowrank-ldu, triton"
        } == expected
        (auto,) = (row for row in rows if row.plan == "auto" and "batch" not in row.method)
        assert auto.label == f"lowrank-ldu, auto ({auto.chosen})"
        assert auto.chosen in {"reference", "factored", "hybrid", "materialized", "packed", "skeleton"}
        for row in rows:
            assert 0 < row.p20_ms <= row.p50_ms <= row.p80_ms
            assert row.rounds >= LEAST_ROUNDS
            assert row.peak_bytes >= 4 * case.tokens * case.out_features  # the output at least
    assert {name.removeprefix("lowrank-ldu, ") for name in measured.left_out} <= {"packed", "skeleton", "triton"}
    assert all("cannot run here" in reason for reason in measured.left_out.values())


def test_ratios_are_to_the_frozen_layer(result):
    case, measured = result
    for mode in case.modes:
        rows = [row for row in measured.rows if row.mode == mode]
        frozen = next(row for row in rows if row.method == FROZEN)
        assert frozen.ratio == 1
        for row in rows:
            assert row.ratio == pytest.approx(row.p50_ms / frozen.p50_ms)


def test_kept_values(result):
    """The frozen layer keeps nothing, full fine-tuning its input, the plans with thin products the projection.

    Those that gather keep their triangles and pivots as well.
    """
    case, measured = result
    kept = {row.label: row.saved_bytes for row in measured.rows if row.mode == "training"}
    assert kept["frozen nn.Linear"] == 0
    assert kept["full fine-tuning"] == 4 * case.tokens * case.in_features
    diagonal = 4 * case.rank
    skeleton = 2 * (4 * case.rank**2 + 8 * case.rank)
    for plan, more in {"factored": 0, "hybrid": skeleton, "skeleton": skeleton}.items():
        if case is not FULL or plan != "skeleton":
            assert kept[f"lowrank-ldu, {plan}"] - 4 * case.tokens * case.rank in range(2 * diagonal + more + 1)


def test_peak_of_a_known_step():
    def step():
        first = torch.ones(1000)
        second = torch.ones(500)
        del first
        third = torch.ones(700)
        del second, third

    assert 6000 <= peak_bytes(step, CPU) <= 6500


def test_saved_bytes_count_a_storage_once():
    class Twice(torch.nn.Module):
        def forward(self, x):
            return (x * x).exp()

    x = torch.ones(100, requires_grad=True)
    assert saved_bytes(Twice(), x) == 800  # x, and the exponential's own result


def test_a_wrong_method_is_not_timed(monkeypatch):
    class Wrong(methods_module.NaiveLayer):
        def forward(self, x):
            return super().forward(x) * 1.01

    monkeypatch.setattr(methods_module, "NaiveLayer", Wrong)
    measured = run_case(CASE, device=CPU, dtype=torch.float32, seconds=0.01, adapters=2, device_name="test")
    assert measured.left_out["naive (dense P, diag as a matrix)"].startswith("wrong: its output is off by")
    assert not [row for row in measured.rows if row.method.startswith("naive")]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("case", [CASE, FULL])
def test_methods_are_right_in_every_dtype(case, dtype):
    base = base_layer(case, dtype, CPU)
    adapted = adapted_layer(base, case.rank, "reference")
    x = torch.randn(case.tokens, case.in_features, generator=torch.Generator().manual_seed(0)).to(dtype)
    expected = expected_output(base, adapted, x)
    for method in methods_of(base, case, 3):
        if method.plan in {"packed", "skeleton", "triton"}:
            continue
        assert is_right(deviation(method, expected, x), dtype), method.name
    # The check tells the layer from the frozen one, but for bfloat16, whose rounding is as large as this update.
    assert dtype == torch.bfloat16 or not is_right(
        deviation(LayerMethod("frozen", "", base, adapted=True), expected, x), dtype
    )


def test_methods_share_no_parameters():
    base = base_layer(CASE, torch.float32, CPU)
    ours = [method.module for method in methods_of(base, CASE, 3) if method.plan and "batch" not in method.name]
    owners = [id(parameter) for module in ours for parameter in module.parameters() if parameter.requires_grad]
    assert len(owners) == len(set(owners)) == 2 * len(ours)


def test_rows_read_back(result, tmp_path):
    _, measured = result
    path = tmp_path / "results.csv"
    write_rows(measured.rows, path)
    header, *lines = path.read_text().splitlines()
    assert tuple(header.split(",")) == COLUMNS
    assert len(lines) == len(measured.rows)
    again = read_rows(path)
    assert [row.label for row in again] == [row.label for row in measured.rows]
    assert again[0].p50_ms == pytest.approx(measured.rows[0].p50_ms, rel=1e-4)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("method,plan\na,b\n", "its columns are not those of this version"),
        (b"\xff\xfe\x00", "is no table of"),
        (None, "cannot be read"),
    ],
)
def test_other_tables_are_refused(tmp_path, text, message):
    path = tmp_path / "results.csv"
    if isinstance(text, str):
        path.write_text(text)
    elif text is not None:
        path.write_bytes(text)
    with pytest.raises(ValueError, match=message):
        read_rows(path)


def test_damaged_rows_are_refused(result, tmp_path):
    path = tmp_path / "results.csv"
    write_rows(result[1].rows, path)
    for damaged in (path.read_text().replace("float32,cpu,test,", "float32,cpu,test,x", 1), path.read_text()[:-40]):
        path.write_text(damaged)
        with pytest.raises(ValueError, match="is no table of measurements"):
            read_rows(path)


def test_plots(result, tmp_path):
    for path in write_plots(result[1].rows, tmp_path):
        assert path.stat().st_size > 10_000
    assert "lowrank-ldu, factored" in (tmp_path / "ratios.svg").read_text()


def test_presets():
    for device in ("cpu", "cuda"):
        assert {(case.out_features, case.in_features) for case in cases_of("base", device)} == {(768, 768)}
        assert (11008, 4096) in {(case.out_features, case.in_features) for case in cases_of("llama", device)}
        assert {case.tokens for case in cases_of("decode", device)} == {1, 8}
        assert len(cases_of("quick", device)) == 1
    with pytest.raises(ValueError, match="preset is 'large'; accepted: 'base', 'quick', 'llama', 'decode'"):
        cases_of("large", "cpu")


def test_steps_take_turns_in_an_order_drawn_anew():
    calls = []
    steps = {name: lambda name=name: calls.append(name) for name in "abc"}
    times = measure(steps, CPU, seconds=1e-9)
    assert times["a"].rounds == LEAST_ROUNDS
    # Each step twice in a row, once untimed; each in each round.
    assert len(calls) == 2 * 3 * LEAST_ROUNDS
    assert calls[::2] == calls[1::2]
    rounds = ["".join(calls[start : start + 6 : 2]) for start in range(0, len(calls), 6)]
    assert all(sorted(each) == ["a", "b", "c"] for each in rounds)
    assert len(set(rounds)) > 1
    before = list(calls)
    calls.clear()
    measure(steps, CPU, seconds=1e-9)
    assert calls == before  # the seed's
    calls.clear()
    measure(steps, CPU, seconds=1e-9, seed=1)
    assert calls != before


def test_the_time_bounds_the_rounds(monkeypatch):
    now = [0.0]
    monkeypatch.setattr("lowrank_ldu.measuring.timing.time.perf_counter", lambda: now[0])

    def step():
        now[0] += 1.0

    shares = []
    times = measure({"a": step}, CPU, seconds=21.0, progress=shares.append)
    assert (times["a"].rounds, times["a"].p50) == (10, 1.0)
    assert shares == sorted(shares)
    assert shares[0] == 0
    assert measure({"a": step}, CPU, seconds=-5.0)["a"].rounds == LEAST_ROUNDS
    assert measure({"a": lambda: None}, CPU, seconds=1.0)["a"].rounds == MOST_ROUNDS


def test_estimated_time():
    """At least what was asked for, and more where three rounds take longer."""
    assert expected_seconds(CASE, CPU, torch.float32, 5.0) == 10.0
    large = Case(4096, 4096, 4096, 4096)
    assert expected_seconds(large, CPU, torch.float32, 5.0) > 100


def test_progress_and_the_rank_of_lora():
    told = []
    measured = run_case(
        CASE,
        device=CPU,
        dtype=torch.float32,
        seconds=0.01,
        adapters=2,
        device_name="test",
        lora_rank=3,
        neighbors=1,
        progress=lambda stage, share: told.append((stage, share)),
    )
    shares = [share for _, share in told]
    assert shares == sorted(shares)
    assert 0 <= shares[0] <= shares[-1] <= 1
    assert {stage.partition(": ")[2] for stage, _ in told} == {
        "checking", "memory, forward", "timing, forward", "memory, training", "timing, training",
    }  # fmt: skip
    assert any(row.method == "PEFT LoRA r = 3" for row in measured.rows)
    assert {row.neighbors for row in measured.rows} == {1}


def test_tables_of_before_read_as_quiet(result, tmp_path):
    path = tmp_path / "results.csv"
    write_rows(result[1].rows, path)
    place = COLUMNS.index("neighbors")
    rows = list(csv.reader(path.read_text().splitlines()))
    with path.open("w", newline="") as file:
        csv.writer(file, lineterminator="\n").writerows([row[:place] + row[place + 1 :] for row in rows])
    assert read_rows(path)[0].neighbors == 0
    assert len(read_rows(Path(__file__).parents[2] / "benchmarks" / "results" / "cpu.csv")) > 100
