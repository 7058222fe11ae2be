"""Surveys on a device: streamed through it, with what it cannot hold on the CPU, and told in the report."""

import dataclasses
import re
import threading

import pytest
import torch
from pretend_device import pretending
from safetensors.torch import save_file
from typer.testing import CliRunner
from weights import weight

from lowrank_ldu.analysis import Analysis, CompareOptions, JournalError, SurveyOptions, analyze, compare, examine_claims
from lowrank_ldu.analysis.claims.report import render_claims
from lowrank_ldu.analysis.comparison import work
from lowrank_ldu.analysis.comparison.plots import draw_comparison
from lowrank_ldu.analysis.comparison.report import render_comparison
from lowrank_ldu.analysis.device import is_out_of_memory, usable_device
from lowrank_ldu.analysis.engine import resources, shapes, survey
from lowrank_ldu.analysis.engine.resources import Layout, bytes_per_entry, plan
from lowrank_ldu.analysis.engine.threads import Threads
from lowrank_ldu.analysis.measures import timing
from lowrank_ldu.analysis.report.page import analysis_json
from lowrank_ldu.checkpoints import TensorInfo
from lowrank_ldu.cli.app import app
from lowrank_ldu.errors import OptionError

STATE = {
    "tall": weight(30, 12), "half": weight(20, 14, seed=1, dtype=torch.bfloat16), "turned": weight(9, 25, seed=2).T,
    "double": weight(10, 8, seed=3, dtype=torch.float64), "bias": weight(4), "bad": torch.full((4, 3), torch.nan),
}  # fmt: skip
OPTIONS = {"ranks": (2, 5), "pivoting": "partial", "threads": 1}


class Device:
    """What a survey finds of the pretended device, and what it does with it."""

    def __init__(self):
        self.limit = float("inf")
        self.waits = 0
        self.pinned = []


@pytest.fixture(name="device")
def pretended_device(monkeypatch):
    """A CUDA device that is none; threads that compute are let onto it."""
    there = Device()

    def on_device(compute):
        def computed(*arguments):
            with pretending(limit=there.limit):
                return compute(*arguments)

        return computed

    def pin(tensor):
        there.pinned.append(tensor.shape)
        return tensor

    def wait(_):
        there.waits += 1

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "Pretended <9000>")
    monkeypatch.setattr(torch.cuda, "synchronize", wait)
    monkeypatch.setattr(torch.Tensor, "pin_memory", pin)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    monkeypatch.setattr(torch.mps, "synchronize", lambda: wait(None))
    monkeypatch.setattr(survey, "_analyze_on_device", on_device(survey._analyze_on_device))
    monkeypatch.setattr(work, "compute_there", on_device(work.compute_there))
    monkeypatch.setattr(shapes, "time_methods", on_device(shapes.time_methods))
    return there


def errors(analysis):
    return {
        tensor.name: [each.diagnostics.frobenius_error for each in matrix.measurements]
        for tensor, matrix in analysis.matrices
    }


def test_a_survey_on_a_device_is_that_of_the_cpu_and_says_so(device, tmp_path):
    found, expected = analyze(STATE, device="cuda", **OPTIONS), analyze(STATE, **OPTIONS)
    assert {tensor.device for tensor, _ in found.matrices} == {"cuda:0"}
    assert {tensor.device for tensor, _ in expected.matrices} == {"cpu"}
    assert {tensor.device for tensor in found.skipped} == {None}
    assert len(device.pinned) == 5
    assert [(each.name, each.reason) for each in found.skipped] == [
        (each.name, each.reason) for each in expected.skipped
    ]
    assert errors(found).keys() == errors(expected).keys() == {"tall", "half", "turned", "double"}
    for name, values in errors(expected).items():
        assert errors(found)[name] == pytest.approx(values, rel=1e-4, abs=1e-6), name
    assert found.computed_on == found.environment.device == "cuda:0 Pretended <9000>"
    assert expected.computed_on == expected.environment.device == "cpu"
    assert "computed on cuda:0 Pretended <9000>" in repr(found)
    assert "computed on" not in repr(expected)
    assert set(found.tensors["device"].dropna()) == {"cuda:0"}
    (tmp_path / "analysis.json").write_text(analysis_json(found), encoding="utf-8")
    assert Analysis.load(tmp_path) == found


def test_what_does_not_fit_is_computed_on_the_cpu(device):
    # The factors in float64 of `tall` are larger than any tensor of the others.
    device.limit = 8 * 30 * 12 - 1
    found = analyze(STATE, device="cuda:0", **OPTIONS)
    where = {tensor.name: tensor.device for tensor, _ in found.matrices}
    assert where == {"tall": "cpu", "half": "cuda:0", "turned": "cuda:0", "double": "cuda:0"}
    assert found.computed_on == (
        "cuda:0 Pretended <9000>, and 1 of 4 matrices on the CPU, since that has too little memory for them"
    )
    # On the CPU it is what the CPU always computes.
    assert errors(found)["tall"] == errors(analyze(STATE, **OPTIONS))["tall"]


def test_what_fits_neither_is_told(device, monkeypatch):
    device.limit = 8 * 30 * 12 - 1
    # Room for the 24 bytes an entry that are on the host beside a device, and not for 48.
    monkeypatch.setattr(survey, "physical_memory", lambda: 2 * 24 * 30 * 12)
    found = analyze(STATE, device="cuda", select="tall|double", **OPTIONS)
    (reason,) = (each.reason for each in found.skipped if each.name == "tall")
    assert re.match(r"error: cuda:0 cannot hold it, and on the CPU, as 30 x 12: too large", reason)


@pytest.mark.usefixtures("device")
def test_other_errors_of_a_device_are_those_of_a_matrix(monkeypatch):
    def broken(W, options):
        if W.shape == (30, 12):
            raise RuntimeError("CUDA error: an illegal instruction was encountered")
        return compute(W, options)

    compute = survey.analyze_matrix
    monkeypatch.setattr(survey, "analyze_matrix", broken)
    found = analyze(STATE, device="cuda", select="tall|double", **OPTIONS)
    reasons = {each.name: each.reason for each in found.skipped}
    assert reasons["tall"] == "error: CUDA error: an illegal instruction was encountered"
    assert [tensor.name for tensor, _ in found.matrices] == ["double"]


@pytest.mark.usefixtures("device")
def test_products_keep_their_digits_and_memory_need_not_be_pinned(monkeypatch):
    def refused(_):
        raise RuntimeError("CUDA error: out of memory")

    def recorded(W, options):
        seen.append(torch.get_float32_matmul_precision())
        return compute(W, options)

    seen, compute, before = [], survey.analyze_matrix, torch.get_float32_matmul_precision()
    monkeypatch.setattr(torch.Tensor, "pin_memory", refused)
    monkeypatch.setattr(survey, "analyze_matrix", recorded)
    torch.set_float32_matmul_precision("high")
    try:
        found = analyze(STATE, device="cuda", select="double", **OPTIONS)
        assert torch.get_float32_matmul_precision() == "high"
    finally:
        torch.set_float32_matmul_precision(before)
    assert seen == ["highest"]
    assert [tensor.device for tensor, _ in found.matrices] == ["cuda:0"]


def test_apples_has_no_float64(device):
    found = analyze(STATE, device="mps", mode="cheap", times=False, **OPTIONS)
    assert {tensor.name: tensor.device for tensor, _ in found.matrices} == {
        "tall": "mps:0", "half": "mps:0", "turned": "mps:0", "double": "cpu"
    }  # fmt: skip
    assert "1 of 4 matrices on the CPU, since that has too little memory, or no float64, for them" in found.computed_on
    assert device.pinned == []
    in_double = analyze(STATE, device="mps", dtype="float64", **OPTIONS)
    assert {tensor.device for tensor, _ in in_double.matrices} == {"cpu"}


def test_times_are_the_devices(device, monkeypatch):
    runs = []
    compute = timing.svd

    def counted(W, *arguments, **options):
        runs.append(W.device.type)
        return compute(W, *arguments, **options)

    monkeypatch.setattr(timing, "svd", counted)
    found = analyze({"tall": STATE["tall"]}, device="cuda", mode="exact", **OPTIONS)
    assert set(runs) == {"cuda"}
    assert len(runs) in {2, 4}  # one to load the libraries, then one, or three where it is short
    assert device.waits >= 2 * len(runs)
    assert all(each.seconds > 0 for _, matrix in found.matrices for each in matrix.measurements)
    claims = examine_claims(found)
    assert "Timed on cuda:0 Pretended &lt;9000&gt;, until it had done its work." in render_claims(claims, found)


def test_shapes_that_the_device_cannot_hold_have_no_times(device):
    device.limit = 8 * 30 * 12 - 1
    found = analyze(STATE, device="cuda", times=True, select="tall|double", **OPTIONS)
    assert {tensor.name: matrix.svd_seconds is None for tensor, matrix in found.matrices} == {
        "tall": True, "double": False
    }  # fmt: skip


def test_a_comparison_on_a_device_is_that_of_the_cpu_and_says_so(device):
    base = {"a": weight(12, 9), "b": weight(40, 10, seed=1), "double": weight(9, 7, dtype=torch.float64)}
    tuned = {name: tensor + 0.1 * weight(*tensor.shape, seed=9).to(tensor.dtype) for name, tensor in base.items()}
    expected = compare(base, tuned, **OPTIONS)
    # The factors in float64 of `b`.
    device.limit = 8 * 40 * 10 - 1
    for name, where, on_cpu in (("cuda", "cuda:0", {"b"}), ("mps", "mps:0", {"double"})):
        found = compare(base, tuned, device=name, **OPTIONS)
        assert {pair.name: pair.device for pair, _ in found.matrices} == {
            each: "cpu" if each in on_cpu else where for each in base
        }
        for (pair, one), (_, other) in zip(found.matrices, expected.matrices, strict=True):
            # The base's singular vectors and terms are of float32.
            assert one.lora_curve == pytest.approx(other.lora_curve, rel=1e-5), pair
            assert one.svd.explained == pytest.approx(other.svd.explained, rel=1e-4), pair
            assert one.ldu["partial"].explained == pytest.approx(other.ldu["partial"].explained, rel=1e-4), pair
            assert one.ldu["partial"].independent == other.ldu["partial"].independent
            assert (one.base_norm, one.update_norm) == pytest.approx((other.base_norm, other.update_norm), rel=1e-6)
        assert "1 of 3 matrices on the CPU" in found.computed_on
        assert "computed on" in repr(found)
        assert set(found.tensors["device"]) == {"cpu", where}
        assert f"<p>Computed on {where}" in render_comparison(found, draw_comparison(found))
    assert expected.computed_on == "cpu"
    assert "Computed on" not in render_comparison(expected, draw_comparison(expected))


@pytest.mark.usefixtures("device")
def test_a_journal_is_of_one_device(tmp_path):
    path, journal = tmp_path / "a.safetensors", tmp_path / "journal"
    save_file({"a": weight(9, 8), "b": weight(8, 6)}, path)
    analyze(path, journal=journal, **OPTIONS)
    with pytest.raises(JournalError, match="cannot be continued: device was 'cpu', and is 'cuda'"):
        analyze(path, journal=journal, resume=True, device="cuda", **OPTIONS)


@pytest.mark.usefixtures("device")
def test_the_command_says_where_it_computed(tmp_path):
    path = tmp_path / "a.safetensors"
    save_file({"a": weight(9, 8)}, path)
    for command in ("analyze", "claims"):
        arguments = [command, path, "--rank", 2, "--device", "cuda:1", "--out", tmp_path / command, "--threads", 1]
        result = CliRunner().invoke(app, list(map(str, arguments)))
        assert result.exit_code == 0, result.output
        assert "omputed on cuda:1 Pretended <9000>." in " ".join(result.stdout.split())
    page = (tmp_path / "analyze" / "report.html").read_text(encoding="utf-8")
    assert "<p>Computed on cuda:1 Pretended &lt;9000&gt;.</p>" in page


@pytest.mark.parametrize("kind", [SurveyOptions, CompareOptions])
@pytest.mark.parametrize("device", ["tpu", "cuda:", "cuda:-1", "cuda:01", "CPU", "cpu:0", "", None, 0, ["cpu"]])
def test_names_of_devices(device, kind):
    with pytest.raises(OptionError, match="device is .*; accepted: cpu, cuda, cuda:N or mps"):
        kind(device=device)


def test_a_device_of_torchs_own_kind():
    assert SurveyOptions(device=torch.device("cuda", 1)).device == "cuda:1"


@pytest.mark.parametrize(
    ("name", "count", "message"),
    [
        ("cuda", 0, r"device is 'cuda', and torch \S+ finds no CUDA device; accepted: cpu"),
        ("cuda:1", 1, "device is 'cuda:1'; accepted: cuda:0, or cpu"),
        ("cuda:2", 2, "device is 'cuda:2'; accepted: cuda:0 to cuda:1, or cpu"),
        ("mps", 0, r"device is 'mps', and torch \S+ finds no GPU of Apple's; accepted: cpu"),
    ],
)
def test_devices_that_are_not_there(monkeypatch, tmp_path, name, count, message):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: count > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    with pytest.raises(OptionError, match=message):
        analyze(STATE, device=name)
    with pytest.raises(OptionError, match=message):
        compare(STATE, STATE, device=name)
    path = tmp_path / "a.safetensors"
    save_file({"a": weight(9, 8)}, path)
    result = CliRunner().invoke(app, ["analyze", str(path), "--device", name, "--out", str(tmp_path / "out")])
    assert result.exit_code == 2
    assert re.search(message, result.stderr)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["a.safetensors"]


def test_workers_of_a_cluster_have_no_device(tmp_path):
    class Engine:
        description = "elsewhere"
        executor = None

    with pytest.raises(
        OptionError, match="device is 'cuda' with an engine, .*; accepted: device='cpu', or engine=None"
    ):
        analyze(tmp_path / "none.safetensors", device="cuda", engine=Engine())


@pytest.mark.usefixtures("device")
def test_a_saved_analysis_is_read_where_the_device_is_not(tmp_path, monkeypatch):
    found = analyze({"a": weight(9, 8)}, device="cuda", **OPTIONS)
    (tmp_path / "analysis.json").write_text(analysis_json(found), encoding="utf-8")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert Analysis.load(tmp_path).computed_on == "cuda:0 Pretended <9000>"
    with pytest.raises(OptionError, match="finds no CUDA device"):
        usable_device("cuda")


@pytest.mark.parametrize(
    ("error", "is_memory"),
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"), True),
        (RuntimeError("MPS backend out of memory (MPS allocated: 9.07 GB)"), True),
        (RuntimeError("cusolver error: CUSOLVER_STATUS_ALLOC_FAILED, when calling `cusolverDnCreate(handle)`"), True),
        (RuntimeError("CUDA error: device-side assert triggered"), False),
        (ValueError("out of memory"), False),
    ],
)
def test_what_want_of_memory_looks_like(error, is_memory):
    assert is_out_of_memory(error) == is_memory


def infos(*sides):
    return [TensorInfo(f"{side}", (side, side), "float32", "a", 0) for side in sides]


def test_one_is_computed_while_the_next_is_read():
    read = {name: threading.Event() for name in ("9", "8", "7")}
    computing = threading.Lock()

    def load(info):
        read[info.name].set()
        return info.name

    def compute(info, loaded):
        assert computing.acquire(blocking=False), "two are computed at once"
        # It ends only if the next one is read meanwhile.
        following = str(int(info.name) - 1)
        assert following not in read or read[following].wait(60)
        computing.release()
        return loaded.pop()

    done = [outcome for _, outcome in Threads(1, load, compute, 1, alone=True).run(infos(9, 8, 7))]
    assert done == ["9", "8", "7"]


def test_nothing_is_begun_after_the_end():
    before, computed = set(threading.enumerate()), []
    third_is_read, second_is_begun, closed = threading.Event(), threading.Event(), threading.Event()

    def load(info):
        if info.name == "7":
            third_is_read.set()
        return info.name

    def compute(_, loaded):
        computed.append(loaded.pop())
        if computed[-1] == "8":
            third_is_read.wait(60)
            second_is_begun.set()
            closed.wait(60)

    run = Threads(1, load, compute, 1, alone=True).run(infos(9, 8, 7))
    next(run)
    assert second_is_begun.wait(60)
    run.close()
    closed.set()
    for thread in set(threading.enumerate()) - before:
        thread.join(60)
    assert computed == ["9", "8"]


def test_memory_of_the_host_beside_a_device():
    tensors = infos(100, 100, 100)
    assert plan(tensors, 8, memory=2**40, alone=True) == Layout(matrices=2, threads_each=8)
    assert plan(tensors, 1, memory=2**40, alone=True) == Layout(matrices=2, threads_each=1)
    assert plan(tensors, 8, memory=2 * 96 * 100**2, alone=True) == Layout(matrices=1, threads_each=8)
    assert plan(tensors[:1], 8, memory=2**40, alone=True) == Layout(matrices=1, threads_each=8)
    for mode in ("fast", "cheap", "exact"):
        options = SurveyOptions(mode=mode)
        beside = bytes_per_entry(dataclasses.replace(options, device="cuda:0"))
        assert 8 < beside < bytes_per_entry(options) == resources._BYTES[mode]
        # Apple's memory is the host's.
        assert bytes_per_entry(dataclasses.replace(options, device="mps")) == bytes_per_entry(options)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("mode", ["fast", "cheap", "exact"])
def test_a_real_device(mode, tmp_path):
    state = {f"{place}.weight": weight(60 + place, 50, seed=place) for place in range(8)} | STATE
    expected, found = (analyze(state, mode=mode, device=name, **OPTIONS) for name in ("cpu", "cuda"))
    assert {tensor.device for tensor, _ in found.matrices} == {f"cuda:{torch.cuda.current_device()}"}
    for name, values in errors(expected).items():
        assert errors(found)[name] == pytest.approx(values, rel=1e-4, abs=1e-5), name
    assert torch.cuda.get_device_name() in found.computed_on
    found.save(tmp_path / "report")
    assert Analysis.load(tmp_path / "report") == found
